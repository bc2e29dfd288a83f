"""Decoding without tokenizers: settings, processors, beam search, the compiled loops. lmjax.generate adds text."""
