"""Read users' images: find images in folders and archives, assign classes, decode, and crop to squares."""
