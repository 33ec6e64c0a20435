"""Data sets as LightningDataModules; the embedded world lives in ``data_modules.synthetic_faces``."""
