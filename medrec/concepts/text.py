"""Semantic view of concepts: a vector per title.

SCQMed encodes titles with BioBERT; how it pools the tokens is not stated. Two encoders are here:
one that needs no weights (TF-IDF of character n-grams, truncated SVD), and any encoder that the
package ``transformers`` can open from a folder, BioBERT among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medrec.config_papers import TextConfig
from medrec.data.schema import resolve_path
from quantum.base import InputError, ResourceError

Array = npt.NDArray[np.float32]
OnBatch = Callable[[int, int], None]
"""Called with the number of titles done and their total."""

_MAX_TOKENS = 128
_MANY = 100
_SVD_STEPS = 3


def embed_titles(
    texts: Sequence[str], config: TextConfig, seed: int, on_batch: OnBatch | None = None
) -> Array:
    """Vectors of titles (N, d), as the configuration says.

    Raises
    ------
    ResourceError
        If ``transformers`` is asked for and not installed.
    InputError
        If the folder holds no encoder, or the encoder gives values that are not finite.
    """
    if config.encoder == "transformer":
        assert config.path is not None, "TextConfig refuses transformer without a path"
        return transformer_vectors(
            texts, resolve_path(config.path), config.pooling, config.batch_size, on_batch
        )
    return ngram_vectors(texts, config.dims, seed)


def ngram_vectors(texts: Sequence[str], n_dims: int, seed: int) -> Array:
    """TF-IDF of character n-grams inside words, compressed by truncated SVD.

    Returns
    -------
    ndarray (N, d)
        d = min(n_dims, N - 1, n-grams - 1), at least 1; rows of length 1, or 0 for a text without
        a single n-gram that counts. The same texts and seed give the same bytes.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(text.strip() for text in texts):
        return np.zeros((len(texts), 1), dtype=np.float32)
    # in a large vocabulary an n-gram of one title says nothing about its likeness to others
    least = 2 if len(texts) >= _MANY else 1
    counted = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=least
    )
    matrix = counted.fit_transform(texts)
    size = min(n_dims, min(matrix.shape) - 1)
    if size < 1:
        dense = np.ones((len(texts), 1))
    else:
        dense = TruncatedSVD(size, n_iter=_SVD_STEPS, random_state=seed).fit_transform(matrix)
    length = np.linalg.norm(dense, axis=1, keepdims=True)
    return (dense / np.where(length > 1e-9, length, 1.0)).astype(np.float32)


# --------------------------------------------------------------------------- transformers


def transformer_vectors(
    texts: Sequence[str],
    folder: Path,
    pooling: str,
    batch_size: int,
    on_batch: OnBatch | None = None,
) -> Array:
    """Pooled last hidden states of an encoder in a folder (N, d); nothing is downloaded.

    Parameters
    ----------
    pooling : {"mean", "cls"}
        Mean over the tokens that the attention mask keeps, or the first token.

    Raises
    ------
    ResourceError
        If ``transformers`` is not installed.
    InputError
        If the folder holds no encoder, or a vector is not finite.
    """
    tokeniser, model = _load(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    rows = []
    for start in range(0, len(texts), batch_size):
        tokens = tokeniser(
            list(texts[start : start + batch_size]),
            padding=True,
            truncation=True,
            max_length=_MAX_TOKENS,
            return_tensors="pt",
        )
        with torch.no_grad():
            tokens = {name: value.to(device) for name, value in tokens.items()}
            hidden = model(**tokens).last_hidden_state
        rows.append(pool(hidden, tokens["attention_mask"], pooling).float().cpu().numpy())
        if on_batch is not None:
            on_batch(min(start + batch_size, len(texts)), len(texts))
    if not rows:
        return np.zeros((0, 1), dtype=np.float32)
    vectors = np.concatenate(rows).astype(np.float32)
    if not np.isfinite(vectors).all():
        raise InputError(f"text encoder in {folder} gives values that are not finite")
    return vectors


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector per text (B, d) from hidden states (B, S, d) and attention mask (B, S)."""
    if pooling == "cls":
        return hidden[:, 0]
    weight = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)


def _load(folder: Path) -> tuple[Any, Any]:
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ResourceError(
            "text encoder 'transformer' needs the package transformers, which is not installed; "
            "expected pip install 'medrec[text]', or encoder: tfidf_svd"
        ) from error
    try:
        # code that lies beside the weights is never run
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        tokeniser = AutoTokenizer.from_pretrained(str(folder), **options)
        model = AutoModel.from_pretrained(str(folder), **options)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"no text encoder in {folder} ({type(error).__name__}); expected a folder with "
            "config.json, the weights and the tokeniser's files"
        ) from error
    return tokeniser, model
