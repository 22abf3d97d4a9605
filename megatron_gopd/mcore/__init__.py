"""Everything that touches megatron.core. Importing this package prepares Megatron for the machine it is on."""

from megatron_gopd.mcore import cpu_seam

cpu_seam.install()
