def __getattr__(name: str): ...  # reading transformers itself takes longer than the whole check; lmjax uses one class
