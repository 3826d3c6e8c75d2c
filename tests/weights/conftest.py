from published_models import altered, published  # noqa: F401 (fixtures)
