"""Settings of the three recipes, as the tests of the data have them."""

from tests.data.conftest import pair_settings, settings, text_settings

__all__ = ["pair_settings", "settings", "text_settings"]
