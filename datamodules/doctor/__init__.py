"""Checks a data set for problems before hours are spent on training.

listing       the images with their classes and splits, from folders or a manifest
scan          every image read once, by several processes; a few hundred bytes kept per image
duplicates    images that are the same, or nearly
classes       classes that can't be learned or measured
diagnosis     all of it together, as a list of problems
report        the problems as a page with pictures, and as a CSV
"""
