"""The domain both processes share: what may be asked, what is remembered, what may happen next. No web, no torch."""
