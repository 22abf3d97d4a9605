"""What a run did, as one page: health, curves, and the kept responses token by token. No torch here."""

from megatron_gopd.view.page import view

__all__ = ["view"]
