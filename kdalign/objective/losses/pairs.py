"""Losses of dual encoders, which compare the images of a group with its texts: sums over rows and directions."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kdalign.objective.losses.precision import to_float32


def pair_contrast(
    images: Float[Tensor, "n width"], texts: Float[Tensor, "n width"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    r"""Mean cross-entropy of finding an image's own text among those of the group, and a text's own image, in nats.

    .. math:: -\frac{1}{2n} \sum_i \log \sigma_i(s\, v_i \cdot t_\bullet) + \log \sigma_i(s\, t_i \cdot v_\bullet)

    Radford et al. 2021, arXiv:2103.00020, figure 3. Embeddings have length 1.
    """
    logits = scale * to_float32(images) @ to_float32(texts).T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def pair_sigmoid(
    images: Float[Tensor, "n width"], texts: Float[Tensor, "n width"], scale: Tensor, bias: Tensor
) -> Float[Tensor, ""]:
    r"""Binary cross-entropy of telling each of n x n pairs of image and text right or wrong, in nats an image.

    .. math:: -\frac{1}{n} \sum_{i,j} \log \sigma(y_{ij} (s\, v_i \cdot t_j + b)), \quad
        y_{ij} = 1 \text{ for } i = j \text{, else } -1

    Zhai et al. 2023 (SigLIP), arXiv:2303.15343, equation 1. A sum over n texts: it grows with the group.

    Args:
        images: embeddings of length 1.
        texts: the same; the text of an image has its row.
        scale: s, one number.
        bias: b, one number.
    """
    logits = scale * to_float32(images) @ to_float32(texts).T + bias
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def pair_similarity(
    student: tuple[Tensor, Tensor, Tensor], teacher: tuple[Tensor, Tensor, Tensor], temperature: float
) -> Float[Tensor, ""]:
    r"""Mean KL divergence from the teacher's distributions over texts given an image, and images given a text, in nats.

    .. math:: \frac{T^2}{2n} \sum_i KL(\sigma(z^t_{i\bullet} / T) \,\|\, \sigma(z^s_{i\bullet} / T))
        + KL(\sigma(z^t_{\bullet i} / T) \,\|\, \sigma(z^s_{\bullet i} / T)), \quad z_{ij} = s\, v_i \cdot t_j

    Contrastive relational distillation of Yang et al. 2024 (CLIP-KD), arXiv:2307.12732. Each model has its own width
    and scale; T is ours. A bias that is added to all (SigLIP) moves no distribution.

    Args:
        student: embeddings of images (n, width), of texts (n, width), and the scale.
        teacher: the same of the teacher.
        temperature: T.
    """
    ours, theirs = (
        scale * to_float32(images) @ to_float32(texts).T / temperature for images, texts, scale in (student, teacher)
    )
    total = ours.new_zeros(())
    for student_logits, teacher_logits in ((ours, theirs), (ours.T, theirs.T)):
        total = total + F.kl_div(
            student_logits.log_softmax(dim=1), teacher_logits.log_softmax(dim=1), reduction="sum", log_target=True
        )
    return temperature**2 * total / (2 * len(ours))
