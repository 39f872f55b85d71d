"""`manage.py up`: Redis, the web server and the workers in one foreground process. No business logic, no Django at import."""
