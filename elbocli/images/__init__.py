"""From strangers' files to squares of pixels: archives, layouts, classes, labels, decoding, crops."""
