"""`python -m twostage_jax.explain`."""

from twostage_jax.explain import main

if __name__ == "__main__":
    main()
