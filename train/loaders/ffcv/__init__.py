"""FFCV: .beton files and the loader that decodes them; `python -m train.loaders.ffcv write|info`."""
