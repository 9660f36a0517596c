"""Stage 3: multi-view diffusion refinement with the Hybrid Priors Diffusion Model and Multi-View Noise Resampling (Eqs. 7-19)."""
