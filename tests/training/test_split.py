"""The arithmetic of a step: what a fixed number of tokens makes of the accumulation, and what it refuses."""

import pytest

from errors import InputError
from training.split import Split, accumulation


@pytest.mark.parametrize(
    ("tokens", "given", "world", "expected"),
    [
        (None, None, 2, 1),
        (None, 3, 2, 3),
        (4096, None, 1, 16),
        (4096, None, 4, 4),
        (4096, 16, 1, 16),
        (256, None, 1, 1),
    ],
)
def test_accumulation(tokens, given, world, expected):
    found = accumulation(tokens, given, batch_size=4, context=64, world=world)
    assert found == expected
    if tokens:
        assert Split(1, world, "", 4, found, 64).tokens_per_step == tokens


@pytest.mark.parametrize(
    ("tokens", "batch_size", "world", "parts"),
    [
        (4096, 3, 1, ["1 rank", "192 tokens at once", "data.batch_size 2 or 4", "data.tokens_per_step 4032 or 4224"]),
        (4096, 48, 1, ["data.batch_size 32 or 64", "data.tokens_per_step 3072 or 6144"]),
        (4096, 128, 1, ["It works with data.batch_size 64, or with data.tokens_per_step 8192"]),
        (4096, 4, 3, ["3 ranks", "It works with data.tokens_per_step 3840 or 4608"]),
        (100, 4, 1, ["It works with data.tokens_per_step 256"]),
    ],
)
def test_what_no_accumulation_makes_is_refused_with_what_works(tokens, batch_size, world, parts):
    with pytest.raises(InputError) as caught:
        accumulation(tokens, None, batch_size=batch_size, context=64, world=world)
    for part in (f"data.tokens_per_step is {tokens}", f"data.batch_size {batch_size}", *parts):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch_size", range(1, 40))
def test_what_the_refusal_advises_works(batch_size):
    try:
        accumulation(64 * 72, None, batch_size=batch_size, context=64, world=2)
    except InputError as error:
        sizes, tokens = str(error).split("It works with ")[1].split(", or with ")
        for size in sizes.removeprefix("data.batch_size ").split(" or "):
            accumulation(64 * 72, None, batch_size=int(size), context=64, world=2)
        for count in tokens.removeprefix("data.tokens_per_step ").split(" or "):
            accumulation(int(count), None, batch_size=batch_size, context=64, world=2)
