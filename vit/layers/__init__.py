"""The layers of the Transformer, as nn.Modules that need torch alone."""
