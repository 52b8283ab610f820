"""How model files of earlier formats differ from those of today."""

from facevae.texture import TEXTURED, Texture

FORMAT = 10  # raised when a reader of the old format could not read the new one
# what a format that is still read does not say, since all of its models were so
_GUIDED: dict[str, object] = {"guided_until": 1.0}
UNSAID: dict[int, dict[str, dict[str, object]]] = {
    2: {"config": {"residual_blocks": 0}, "prior": {"residual": False, "guidance": 1.0, **_GUIDED}},
    3: {"prior": {"guidance": 1.0, **_GUIDED}},
    **{known: {"prior": _GUIDED} for known in (4, 5, 6)},
    **{known: {} for known in (7, 8, 9, FORMAT)},
}
# begins the names of a texture's blocks; there was none at a level, then one without a number
_BLOCKS, _WITH_BLOCKS, _WITH_NUMBERED_BLOCKS = f"vae.{TEXTURED}blocks.", 6, 8
_MENDS, _WITH_MENDS = f"vae.{TEXTURED}mends.", 9  # and of what mends coarser levels
_WITH_TRIANGLES = 10


def stored_name(known: int, name: str) -> str | None:
    """Of a tensor, in a file of the format `known`; None where that has none."""
    if name.startswith(_MENDS) and known < _WITH_MENDS:
        return None
    if known >= _WITH_NUMBERED_BLOCKS or not name.startswith(_BLOCKS):
        return name
    level, number, rest = name.removeprefix(_BLOCKS).split(".", 2)
    return f"{_BLOCKS}{level}.{rest}" if int(number) < _num_blocks(known) else None


def has_triangles(known: int) -> bool:
    """Whether a file of the format `known` holds the lower triangles of matrices that say no more."""
    return known >= _WITH_TRIANGLES


def init_missing_blocks(known: int, texture: Texture) -> None:
    """Put new blocks, which add nothing, where a file of the format `known` has none."""
    if known < _WITH_NUMBERED_BLOCKS:
        texture.begin_blocks(_num_blocks(known))
    if known < _WITH_MENDS:
        texture.begin_mends()


def _num_blocks(known: int) -> int:
    """Of a texture's level, in files of the formats before blocks were numbered."""
    return 0 if known < _WITH_BLOCKS else 1
