"""Python snippets for a model card that load and use the student, runnable as they are."""

from kdalign.data.media.rows import MediaKind
from kdalign.models.heads import HeadKind

_START = """\
import torch
from transformers import {auto}, AutoTokenizer

name = "."  # the folder that holds this card; on the hub, the model's name
tokenizer = AutoTokenizer.from_pretrained(name)
model = {auto}.from_pretrained(name).eval()
"""

_CLASSIFIER = """\
inputs = tokenizer({texts}, truncation=True, max_length={length}, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
if model.config.num_labels == 1:
    print(logits.item())
else:
    print(model.config.id2label[logits.argmax(-1).item()])
"""

_MASKED = """\
inputs = tokenizer(f"A text with a {{tokenizer.mask_token}} in it.", return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
masked = inputs["input_ids"] == tokenizer.mask_token_id
print(tokenizer.decode(logits[masked].argmax(-1)))
"""

_CAUSAL = """\
inputs = tokenizer("A text that", return_tensors="pt", add_special_tokens=False)
written = model.generate(**inputs, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(written[0], skip_special_tokens=True))
"""

_PERMUTATION = """\
ids = tokenizer("A text that", return_tensors="pt", add_special_tokens=False)["input_ids"]
ids = torch.cat([ids, ids[:, -1:]], dim=1)  # the last position is predicted, and hidden from all others
hidden = torch.zeros(1, ids.shape[1], ids.shape[1])
hidden[:, :, -1] = 1
asked = torch.zeros(1, 1, ids.shape[1])
asked[0, 0, -1] = 1
with torch.no_grad():
    logits = model(ids, perm_mask=hidden, target_mapping=asked).logits
print(tokenizer.decode(logits[0, 0].argmax()))
"""

_SEQ2SEQ = """\
inputs = tokenizer("A text to read.", truncation=True, max_length={length}, return_tensors="pt")
written = model.generate(**inputs, max_new_tokens=20, do_sample=False)
print(tokenizer.decode(written[0], skip_special_tokens=True))
"""

_CTC = """\
extractor = AutoFeatureExtractor.from_pretrained(name)
samples = [0.0] * extractor.sampling_rate  # a second of silence: one channel, between -1 and 1
inputs = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
with torch.no_grad():
    labels = model(**inputs).logits.argmax(-1)
print(tokenizer.batch_decode(labels))
"""

_EMBEDDING = """\
texts = ["A text.", "Another text."]
inputs = tokenizer(texts, padding=True, truncation=True, max_length={length}, return_tensors="pt")
with torch.no_grad():
    features = model(**inputs).last_hidden_state
real = inputs["attention_mask"].unsqueeze(-1)
embeddings = (features * real).sum(1) / real.sum(1)
print(torch.nn.functional.cosine_similarity(embeddings[0], embeddings[1], dim=0).item())
"""

_DUAL = """\
import torch
from PIL import Image
from transformers import {auto}, AutoImageProcessor, AutoTokenizer

name = "."  # the folder that holds this card; on the hub, the model's name
tokenizer = AutoTokenizer.from_pretrained(name)
processor = AutoImageProcessor.from_pretrained(name, backend="pil")
model = {auto}.from_pretrained(name).eval()

texts = ["A text.", "Another text."]
image = Image.new("RGB", (64, 64))  # in its place, Image.open("FILE").convert("RGB")
inputs = tokenizer(texts, padding=True, return_tensors="pt") | processor(image, return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).logits_per_image.softmax(-1))
"""
_PAIR = """\
inputs = tokenizer(texts, padding=True, return_tensors="pt") | processor(image, return_tensors="pt")
"""
_PADDED = """\
length = model.config.text_config.max_position_embeddings  # padding is read, too
inputs = tokenizer(
    texts, padding="max_length", max_length=length, truncation=True, return_attention_mask=False, return_tensors="pt"
)
inputs |= processor(image, return_tensors="pt")
"""
_DUAL_PADDED = _DUAL.replace(_PAIR, _PADDED)

_IMAGE = """\
import torch
from PIL import Image
from transformers import {auto}, AutoImageProcessor

name = "."  # the folder that holds this card; on the hub, the model's name
processor = AutoImageProcessor.from_pretrained(name, backend="pil")
model = {auto}.from_pretrained(name).eval()

image = Image.new("RGB", (64, 64))  # in its place, Image.open("FILE").convert("RGB")
inputs = processor(image, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
print(model.config.id2label[logits.argmax(-1).item()])
"""

_GREY_IMAGE = _IMAGE.replace("import torch\n", "import numpy as np\nimport torch\n").replace(
    """image = Image.new("RGB", (64, 64))  # in its place, Image.open("FILE").convert("RGB")
inputs = processor(image, return_tensors="pt")
""",
    """image = Image.new("L", (64, 64))  # in its place, Image.open("FILE").convert("L")
pixels = np.asarray(image)[:, :, None]  # one channel
inputs = processor(pixels, input_data_format="channels_last", return_tensors="pt")
""",
)

_SPEECH = """\
import numpy as np
import torch
from transformers import {auto}, AutoFeatureExtractor, AutoTokenizer

name = "."  # the folder that holds this card; on the hub, the model's name
extractor = AutoFeatureExtractor.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)
model = {auto}.from_pretrained(name).eval()

rate = extractor.sampling_rate
sound = np.zeros(rate, dtype=np.float32)  # a second of silence; in its place, samples at this rate, such as soundfile's
inputs = extractor(sound, sampling_rate=rate, return_tensors="pt")
with torch.no_grad():
    written = model.generate(**inputs, do_sample=False)
print(tokenizer.decode(written[0], skip_special_tokens=True))
"""

_CODE = {
    HeadKind.CLASSIFIER: _CLASSIFIER,
    HeadKind.MASKED: _MASKED,
    HeadKind.CAUSAL: _CAUSAL,
    HeadKind.SEQ2SEQ: _SEQ2SEQ,
    HeadKind.CTC: _CTC,
    HeadKind.NONE: _EMBEDDING,
}


def media_example(
    modality: MediaKind, head: HeadKind, auto: str, channels: int = 3, reads_padding: bool = False
) -> str:
    """Write code that loads a student of sounds or images and runs it once.

    Args:
        modality: what it reads.
        head: the student's head.
        auto: the class of Transformers that loads it.
        channels: channels of the images.
        reads_padding: true for a dual encoder that reads the padding of texts.
    """
    of_pairs = _DUAL_PADDED if reads_padding else _DUAL
    of_images = of_pairs if head is HeadKind.DUAL else _GREY_IMAGE if channels == 1 else _IMAGE
    if head is HeadKind.CTC:
        return example(head, auto, 0, pair=False, permutation=False)
    code = _SPEECH if modality == "audio" else of_images
    return code.format(auto=auto)


def example(head: HeadKind, auto: str, length: int, *, pair: bool, permutation: bool) -> str:
    """Write code that loads a student of text and runs it once.

    Args:
        head: the student's head.
        auto: the class of Transformers that loads it.
        length: maximum length of inputs in tokens.
        pair: true if it reads two texts at once.
        permutation: true if it predicts tokens in any order (XLNet).
    """
    texts = '"A text.", "Another text."' if pair else '"A text."'
    code = _PERMUTATION if permutation else _CODE[head].format(texts=texts, length=length)
    start = _START.replace("{auto}, ", "AutoFeatureExtractor, {auto}, ") if head is HeadKind.CTC else _START
    return f"{start.format(auto=auto)}\n{code}"
