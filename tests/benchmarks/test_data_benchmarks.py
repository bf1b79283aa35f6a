"""The benchmarks of the data side measure what they say, on little text."""

from benchmarks import prepare


def test_prepare_is_measured_beside_the_library(tmp_path):
    rows = {
        name: [float(cell.replace(",", "")) for cell in cells] for name, *cells in prepare.measured(0.2, 1, tmp_path)
    }
    assert rows.keys() == {"encode_batch", "encode_batch_fast", "prepare", "reading alone"}
    assert rows["encode_batch_fast"][2] == 1
    assert rows["reading alone"][1] > rows["encode_batch"][1] > 0  # tokens a second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records.jsonl", "tokenizer.json"]
