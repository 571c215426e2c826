#!/usr/bin/env bash
# Pillow 13.0.0: saving an image as AVIF removes the orientation from the caller's Exif object.
# Guess: save() leaves its arguments alone, as it does for JPEG, PNG and WebP, so that one image can be written twice.
# Behaviour: AVIF keeps orientation in a property of its own, and the plugin takes it out of the object that it was
#   given. What is saved with it afterwards lies on its side, and so is the image itself if the object is its own
#   getexif(): exif_transpose turns it before saving and not after.
# Seen: orientation of the JPEG written before the AVIF: 6, after it: None; exif_transpose of the source (32, 64)
#   before, (64, 32) after
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pillow==13.0.0
cd "$work"
venv/bin/python - <<'EOF'
from PIL import Image, ImageOps

exif = Image.Exif()
exif[0x112] = 6
Image.new("RGB", (64, 32)).save("source.jpg", exif=exif)
orientations, sizes = {}, []
with Image.open("source.jpg") as image:
    for name in ("webp.webp", "before.jpg", "a.avif", "after.jpg"):
        sizes.append(ImageOps.exif_transpose(image).size)
        image.save(name, exif=image.getexif())
        orientations[name] = Image.open(name).getexif().get(0x112)
    sizes.append(ImageOps.exif_transpose(image).size)
print(orientations, sizes)
assert orientations == {"webp.webp": 6, "before.jpg": 6, "a.avif": 6, "after.jpg": None}
assert sizes == [(32, 64), (32, 64), (32, 64), (64, 32), (64, 32)]
EOF
