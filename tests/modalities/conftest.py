"""Settings of the three recipes, and the text recipe, as the tests of the data have them."""

from tests.data.conftest import no_weights, pair_settings, settings, text, text_settings

__all__ = ["no_weights", "pair_settings", "settings", "text", "text_settings"]
