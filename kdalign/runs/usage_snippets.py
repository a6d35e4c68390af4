"""Python snippets for a model card that load and use the student, runnable as they are."""

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

_EMBEDDING = """\
texts = ["A text.", "Another text."]
inputs = tokenizer(texts, padding=True, truncation=True, max_length={length}, return_tensors="pt")
with torch.no_grad():
    features = model(**inputs).last_hidden_state
real = inputs["attention_mask"].unsqueeze(-1)
embeddings = (features * real).sum(1) / real.sum(1)
print(torch.nn.functional.cosine_similarity(embeddings[0], embeddings[1], dim=0).item())
"""

_CODE = {
    HeadKind.CLASSIFIER: _CLASSIFIER,
    HeadKind.MASKED: _MASKED,
    HeadKind.CAUSAL: _CAUSAL,
    HeadKind.SEQ2SEQ: _SEQ2SEQ,
    HeadKind.NONE: _EMBEDDING,
}


def example(head: HeadKind, auto: str, length: int, *, pair: bool, permutation: bool) -> str:
    """Write code that loads a student and runs it once.

    Args:
        head: the student's head.
        auto: the class of Transformers that loads it.
        length: maximum length of inputs in tokens.
        pair: true if it reads two texts at once.
        permutation: true if it predicts tokens in any order (XLNet).
    """
    texts = '"A text.", "Another text."' if pair else '"A text."'
    code = _PERMUTATION if permutation else _CODE[head].format(texts=texts, length=length)
    return f"{_START.format(auto=auto)}\n{code}"
