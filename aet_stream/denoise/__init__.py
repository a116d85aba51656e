"""The background and how it is found: a DnCNN, or a classical estimate. Importing this room does not import torch."""
