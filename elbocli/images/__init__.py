"""Reading of users' images: archives, layouts, classes, labels, decoding, and crops to squares of pixels."""
