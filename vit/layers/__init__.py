"""The layers of the Transformer, as nn.Modules that need only torch."""
