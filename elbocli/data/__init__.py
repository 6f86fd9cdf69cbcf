"""Read users' images: find them, assign classes, decode, and crop to squares."""
