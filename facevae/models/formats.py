"""Differences between the current model file format and earlier ones."""

from facevae.networks.texture import TEXTURED, Texture

FORMAT = 11  # increase when a reader of the old format could not read the new one
_UNGUIDED: dict[str, object] = {"guided_until": 1.0}
# by format version that can be read: metadata that its files do not hold, with the values that
# were the only ones at the time
UNSAID: dict[int, dict[str, dict[str, object]]] = {
    2: {
        "config": {"residual_blocks": 0},
        "prior": {"residual": False, "guidance": 1.0, **_UNGUIDED},
    },
    3: {"prior": {"guidance": 1.0, **_UNGUIDED}},
    **{version: {"prior": _UNGUIDED} for version in (4, 5, 6)},
    **{version: {} for version in (7, 8, 9, 10, FORMAT)},
}
# the first version with a residual block at each level of a texture, with numbered blocks, with
# blocks that correct coarser levels, with matrices stored as triangles, and without a covariance of
# the latents beside that of a fitted prior
_WITH_BLOCKS, _WITH_NUMBERED_BLOCKS, _WITH_MENDS, _WITH_TRIANGLES = 6, 8, 9, 10
_WITHOUT_COVARIANCE = 11
_BLOCKS, _MENDS = f"vae.{TEXTURED}blocks.", f"vae.{TEXTURED}mends."  # prefixes of tensor names


def stored_name(version: int, name: str) -> str | None:
    """Name of a tensor in a file of this format version; None if such files do not hold it."""
    if name.startswith(_MENDS) and version < _WITH_MENDS:
        return None
    if version >= _WITH_NUMBERED_BLOCKS or not name.startswith(_BLOCKS):
        return name
    level, number, rest = name.removeprefix(_BLOCKS).split(".", 2)
    return f"{_BLOCKS}{level}.{rest}" if int(number) < _num_blocks(version) else None


def has_triangles(version: int) -> bool:
    """Whether symmetric and triangular matrices are stored as their lower triangles."""
    return version >= _WITH_TRIANGLES


def has_covariance(version: int) -> bool:
    """Whether files hold the covariance of the latents beside that of a fitted prior."""
    return version < _WITHOUT_COVARIANCE


def init_missing_blocks(version: int, texture: Texture) -> None:
    """Initialise the blocks that a file of this format version lacks; they change nothing."""
    if version < _WITH_NUMBERED_BLOCKS:
        texture.begin_blocks(_num_blocks(version))
    if version < _WITH_MENDS:
        texture.begin_mends()


def _num_blocks(version: int) -> int:
    """Blocks at each level of a texture, in the versions before blocks were numbered."""
    return 0 if version < _WITH_BLOCKS else 1
