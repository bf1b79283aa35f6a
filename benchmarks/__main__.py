"""`python -m benchmarks`: every benchmark of the CPU in turn, each printing its tables."""

from benchmarks import attention, loader, prepare, probe, training, variants


def main() -> None:
    """Run them one after another: they must not share the cores."""
    for benchmark in (training, variants, attention, probe, loader, prepare):
        benchmark.main([])


if __name__ == "__main__":
    main()
