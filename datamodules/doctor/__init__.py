"""What is wrong with a data set, before hours are spent on it.

listing       which images there are, of which class and split: folders or a manifest
scan          every image read once, by several processes; a few hundred bytes kept of each
duplicates    which images are the same, or nearly
classes       which classes can't be learned, or not be measured
diagnosis     all of it together, as a list of problems
report        the problems as a page with pictures, and as a CSV
"""
