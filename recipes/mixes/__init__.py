"""Mixes of calibration texts by name, `mix:chat`: a list of texts with weights each."""
