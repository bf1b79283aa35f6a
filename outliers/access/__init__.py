"""Any decoder opened for analysis: a run of ours, one of its checkpoints, or a model in Hugging Face's format.

decoder = open_decoder("runs/demo/text/softmax/seed=0")  # or a .ckpt, a .safetensors, hf:gpt2, hf:/a/folder
text = sequences(decoder, "text.txt", count=8, length=256)
nats_BT = decoder.nats(text.tokens)
with decoder.hooked([("down_input", 3, lambda x_BTM: x_BTM.clamp(-8, 8))]):
    clipped_BT = decoder.nats(text.tokens)
"""

from outliers.access.decoder import SITES, Decoder, Sizes
from outliers.access.opening import open_decoder
from outliers.access.text import BUILT_IN, Text, sequences

__all__ = ["BUILT_IN", "SITES", "Decoder", "Sizes", "Text", "open_decoder", "sequences"]
