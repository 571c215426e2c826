#!/usr/bin/env bash
# pillow-heif 1.8.1: save(..., exif=image.getexif()) as HEIC loses the orientation; the same EXIF as bytes keeps it.
# Guess: both forms that Pillow 13.0.0 documents for `exif` give the same file, as they do for JPEG.
# Behaviour: HEIC carries orientation as a property of its own, which is set from the bytes only. With the object, the
#   tag is written and no property, and on reading the tag is reset to 1, since a property is assumed to have been
#   applied: the image stays on its side for every reader.
# Seen: a photo of 64 x 32 with orientation 6, saved and opened again: bytes (32, 64), object (64, 32), tag 1 in both
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pillow-heif==1.8.1 pillow==13.0.0
cd "$work"
venv/bin/python - <<'EOF'
import pillow_heif
from PIL import Image, ImageOps

pillow_heif.register_heif_opener()
exif = Image.Exif()
exif[0x112] = 6
Image.new("RGB", (64, 32)).save("photo.jpg", exif=exif)
sizes = {}
for form in ("bytes", "object"):
    for suffix in ("jpg", "heic"):
        image = Image.open("photo.jpg")
        exif = image.getexif()
        image.save(f"{form}.{suffix}", exif=exif if form == "object" else exif.tobytes())
        copy = Image.open(f"{form}.{suffix}")
        sizes[form, suffix] = ImageOps.exif_transpose(copy).size
        print(form, suffix, sizes[form, suffix], "tag", copy.getexif().get(0x112))
upright, lying = (32, 64), (64, 32)
assert sizes == {("bytes", "jpg"): upright, ("object", "jpg"): upright, ("bytes", "heic"): upright,
                 ("object", "heic"): lying}
EOF
