"""Where a model looked: record a forward pass, walk its attention, draw and score the map."""
