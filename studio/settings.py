"""Every setting that is read from the environment, here and nowhere else."""

import os
import secrets
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import django
from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from studio.supervisor.sockets import engine_socket, redis_url
from studio.worker.tracking import TITLES

ROOT = Path(__file__).resolve().parent.parent


MEMORY_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
"""Powers of two."""


def env(name: str, default: str = "") -> str:
    return os.environ.get(f"STUDIO_{name}", default).strip()


def env_bool(name: str, default: bool = False) -> bool:
    value = env(name, "1" if default else "0").lower()
    if value not in {"0", "1", "false", "true", "no", "yes"}:
        raise ImproperlyConfigured(f"STUDIO_{name} must be true or false, not {value!r}.")
    return value in {"1", "true", "yes"}


def secret_key(folder: Path) -> str:
    """Made at the first start, readable by its owner alone."""
    given = env("SECRET_KEY")
    if given:
        if len(given) < 50:
            raise ImproperlyConfigured("STUDIO_SECRET_KEY must have at least 50 characters.")
        return given
    path = folder / "secret_key"
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        key = secrets.token_urlsafe(64)
        file.write(key)
    return key


def database(url: str, folder: Path) -> dict[str, object]:
    """SQLite in the data folder, or PostgreSQL by a postgres:// address."""
    if not url:
        # IMMEDIATE takes the write lock at BEGIN, so that two writers wait instead of failing half way.
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": folder / "db.sqlite3",
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL;PRAGMA synchronous=NORMAL;PRAGMA mmap_size=134217728;PRAGMA cache_size=-20000;",
            },
            "TEST": {"NAME": folder / "test.sqlite3"},
        }
    parts = urlsplit(url)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise ImproperlyConfigured("STUDIO_DATABASE_URL must start with postgres://.")
    socket = parse_qs(parts.query).get("host", [""])[0]  # a folder, which cannot stand before the path
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or socket,
        "PORT": str(parts.port or ""),
        "OPTIONS": {"pool": {"min_size": 1, "max_size": 8}},
    }


def secure_address(url: str, name: str) -> str:
    """An https:// address without its last slash; http:// is for this machine alone."""
    parts = urlsplit(url)
    if url and parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in {"localhost", "127.0.0.1", "::1"}):
        raise ImproperlyConfigured(f"STUDIO_{name} must start with https://.")
    return url.rstrip("/")


def choice(name: str, known: tuple[str, ...]) -> str:
    """One of a few words; the first where nothing is set."""
    value = env(name, known[0]).lower() or known[0]
    if value not in known:
        raise ImproperlyConfigured(f"STUDIO_{name} must be one of {', '.join(known)}, not {value!r}.")
    return value


def address(url: str) -> str:
    """An http:// or https:// address without its last slash."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ImproperlyConfigured(f"STUDIO_VLLM_URLS must hold addresses such as http://127.0.0.1:8001, not {url!r}.")
    return url.rstrip("/")


def price(text: str) -> tuple[float | None, str]:
    """An amount and its currency, such as `2.40 EUR`; (None, "") where nothing is set."""
    if not text:
        return None, ""
    amount, _, currency = text.partition(" ")
    try:
        number = float(amount)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6:
        raise ImproperlyConfigured(f"STUDIO_PRICE_PER_HOUR must be an amount and a currency, such as 2.40 EUR, not {text!r}.")
    return number, currency.strip()


def tokens(text: str, name: str) -> int:
    """A number of tokens; 0 where nothing is set."""
    number = int(text) if text.isdecimal() and len(text) < 8 else 0
    if text and not 512 <= number <= 1 << 20:
        raise ImproperlyConfigured(f"STUDIO_{name} must be a number of tokens from 512 to 1048576, not {text!r}.")
    return number


def memory(text: str, name: str = "BUILD_MEMORY") -> int:
    """Bytes, such as 8G, 8192M or 8589934592; 0 where nothing is set."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text or "0", "")
    if not number.isdecimal() or unit not in MEMORY_UNITS:
        raise ImproperlyConfigured(f"STUDIO_{name} must be bytes, or a number with K, M, G or T, such as 8G, not {text!r}.")
    return int(number) << MEMORY_UNITS[unit]


def trackers(text: str) -> tuple[str, ...]:
    """Names with commas between them, as `studio.worker.tracking` knows them."""
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    if unknown := [name for name in names if name not in TITLES]:
        raise ImproperlyConfigured(f"STUDIO_TRACKERS does not know {', '.join(unknown)}. Choose from {', '.join(TITLES)}.")
    return names


def openid_connect(url: str, *, name: str, client_id: str, secret: str) -> dict[str, object]:
    """The one provider as allauth knows it; its name in addresses is "company"."""
    if not url:
        return {}
    if not client_id:
        raise ImproperlyConfigured("STUDIO_OIDC_URL needs STUDIO_OIDC_CLIENT_ID: the name that the provider knows this studio by.")
    app = {"provider_id": "company", "name": name, "client_id": client_id, "secret": secret, "settings": {"server_url": url}}
    return {"openid_connect": {"OAUTH_PKCE_ENABLED": True, "APPS": [app]}}


def smtp(url: str) -> dict[str, object]:
    """Where mail is handed over, such as `smtp://user:password@host:587?tls=1`, or smtps:// for a port that is encrypted at once."""
    parts = urlsplit(url)
    tls = parse_qs(parts.query).get("tls", ["0"])[0]
    if parts.scheme not in {"smtp", "smtps"} or not parts.hostname or tls not in {"0", "1"}:
        raise ImproperlyConfigured("STUDIO_SMTP_URL must look like smtp://user:password@host:587?tls=1, or begin with smtps://.")
    return {
        "host": parts.hostname,
        "port": parts.port or (465 if parts.scheme == "smtps" else 587),
        "username": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "use_tls": tls == "1",
        "use_ssl": parts.scheme == "smtps",
        "timeout": 10,
    }


os.umask(0o077)  # whatever this process or one that it starts writes is for its owner alone: rows, weights, the database
DATA_DIR = Path(env("DATA_DIR") or ROOT / "data").resolve()
DATA_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
SECRET_KEY = secret_key(DATA_DIR)
DEBUG = env_bool("DEBUG")
PUBLIC_HOST = env("PUBLIC_HOST")
if PUBLIC_HOST == "*":
    raise ImproperlyConfigured("STUDIO_PUBLIC_HOST must name one host.")
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", *([PUBLIC_HOST] if PUBLIC_HOST else [])]
HTTPS = env_bool("HTTPS")
CSRF_TRUSTED_ORIGINS = [f"https://{PUBLIC_HOST}"] if PUBLIC_HOST and HTTPS else []
REDIS_URL = os.environ.get("REDIS_URL", "") or redis_url(DATA_DIR)
HUB_URL = env("HUB_URL")
"""Address of the model hub; empty takes the public one."""
MODEL_FOLDERS = [Path(part).resolve() for part in env("MODEL_FOLDERS").split(os.pathsep) if part]
"""Folders of this machine from which members may register base models.

None means any that the server can read, for owners of its first workspace.
"""
OPEN_WORKSPACES = env_bool("OPEN_WORKSPACES")
"""Whether somebody with an account makes a workspace who owns none yet."""
PRIVATE_HOSTS = env("PRIVATE_HOSTS").replace(",", " ").split()
"""Hosts, as name or name:port, that members may have the server ask though their addresses are not public; see `studio.outside`."""
MAX_UPLOAD = int(env("MAX_UPLOAD", str(5 << 30)))
PRICE_PER_HOUR, PRICE_CURRENCY = price(env("PRICE_PER_HOUR"))
"""What an hour of a worker costs; the page of an ended run tells its cost where this is set."""
BUILD_MEMORY = memory(env("BUILD_MEMORY"))
"""Bytes of memory that all builds of one machine may take together, where they wait for each other; 0 is half of what it has."""
STATES_KEPT_DAYS = int(env("STATES_KEPT_DAYS", "30"))
"""Days for which a paused or failed run can be resumed; then what it would go on from is deleted."""
TRACKERS = trackers(env("TRACKERS"))
"""Names from studio.worker.tracking: where every run's numbers and settings are told as well. None unless somebody asks for it."""
OIDC_URL = secure_address(env("OIDC_URL"), "OIDC_URL")
"""Issuer of an OpenID Connect provider, by which people sign in too; empty offers none."""
OIDC_CLIENT_ID, OIDC_CLIENT_SECRET = env("OIDC_CLIENT_ID"), env("OIDC_CLIENT_SECRET")
OIDC_NAME = env("OIDC_NAME") or "your company's account"
"""What stands after "Sign in with"."""
SMTP_URL, MAIL_FROM = env("SMTP_URL"), env("MAIL_FROM")
"""Where mail is handed over, and who sends it. Without it no mail is sent, and links are shown on the page alone."""
if SMTP_URL and not MAIL_FROM:
    raise ImproperlyConfigured("STUDIO_SMTP_URL needs STUDIO_MAIL_FROM: the address that mail comes from.")
ENGINE = choice("ENGINE", ("auto", "llamacpp", "vllm"))
"""What answers: vLLM where it is set up or can be started and llama.cpp for all else, or one of them alone."""
VLLM_URLS = [address(url) for url in env("VLLM_URLS").replace(",", " ").split()]
"""vLLM servers that run elsewhere. Each is asked which base it serves: see the architecture's part on serving."""
VLLM_COMMAND = env("VLLM_COMMAND", "vllm")
"""What starts a vLLM server here, where there is a GPU; empty starts none. STUDIO_VLLM_KEY, which servers elsewhere may want, is read by
the engine's own process alone: what stands on a command line is read by everybody on the machine."""
SERVING_PRECISION = choice("SERVING_PRECISION", ("q8_0", "f16"))
"""Type of the weights that llama.cpp answers with: q8_0 takes half the memory of f16, and is faster."""
SERVING_MEMORY = memory(env("SERVING_MEMORY"), "SERVING_MEMORY")
"""Bytes of memory that all models which llama.cpp answers with may take together; 0 is half of what the machine has."""
SERVING_CONTEXT = tokens(env("SERVING_CONTEXT"), "SERVING_CONTEXT")
"""Tokens of one conversation at most, question and answer together, as far as the model goes; 0 is 4,096 of llama.cpp and 8,192 of vLLM."""
ENGINE_WORDS = (
    *("--engine", ENGINE, "--precision", SERVING_PRECISION, "--memory", str(SERVING_MEMORY), "--context", str(SERVING_CONTEXT)),
    *(f"--vllm-url={url}" for url in VLLM_URLS),
    f"--vllm-command={VLLM_COMMAND}",
)
ENGINE_SOCKET = env("ENGINE_SOCKET") or str(engine_socket(DATA_DIR))

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.usersessions",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "django_rq",
    "ninja",
    "studio.audit",
    "studio.workspaces",
    "studio.orders",
    "studio.basemodels",
    "studio.datasets",
    "studio.artifacts",
    "studio.releases",
    "studio.runs",
    "studio.serving",
    "studio.comparisons",
    "studio.clients",
    "studio.api",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "servestatic.middleware.ServeStaticMiddleware",
    "csp.middleware.CSPMiddleware",
    "studio.workspaces.sessions.CookieMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "studio.workspaces.sessions.SessionsMiddleware",
    "studio.workspaces.middleware.MemberMiddleware",
    "studio.workspaces.middleware.PolicyMiddleware",
    "studio.workspaces.middleware.UserErrorMiddleware",
]
ROOT_URLCONF = "studio.urls"
ASGI_APPLICATION = "studio.asgi.application"

# Django 6 has partials built in; 5.2 takes them from a package of the same syntax.
OLD_PARTIALS = django.VERSION < (6,)
LOADERS: list[object] = ["django.template.loaders.filesystem.Loader", "django.template.loaders.app_directories.Loader"]
if not DEBUG:
    LOADERS = [("django.template.loaders.cached.Loader", LOADERS)]
if OLD_PARTIALS:
    LOADERS = [("template_partials.loader.Loader", LOADERS)]
TEMPLATES = [
    {
        "NAME": "django",
        "BACKEND": "studio.workspaces.templating.DjangoTemplates",
        "DIRS": [ROOT / "templates"],
        "OPTIONS": {
            "loaders": LOADERS,
            "builtins": [*(["template_partials.templatetags.partials"] if OLD_PARTIALS else []), "studio.workspaces.templatetags.studio"],
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "studio.workspaces.context.frame",
            ],
        },
    }
]

DATABASES = {"default": database(env("DATABASE_URL"), DATA_DIR)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_USER_MODEL = "workspaces.User"
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher", "django.contrib.auth.hashers.PBKDF2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
ACCOUNT_ADAPTER = "studio.workspaces.signing_in.AccountAdapter"
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*"]
ACCOUNT_SIGNUP_ENABLED = False
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_EMAIL_UNKNOWN_ACCOUNTS = False
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_FORMS = {
    "login": "studio.workspaces.forms.SignInForm",
    "change_password": "studio.workspaces.forms.ChangePassword",
    "set_password": "studio.workspaces.forms.FirstPassword",
    "reset_password": "studio.workspaces.forms.ForgottenPassword",
    "reset_password_from_key": "studio.workspaces.forms.NewPassword",
    "reauthenticate": "studio.workspaces.forms.ConfirmByPassword",
}
ACCOUNT_REAUTHENTICATION_METHODS = ("password", "mfa")
ACCOUNT_REAUTHENTICATION_REQUIRED = True
ACCOUNT_REAUTHENTICATION_TIMEOUT = 10 * 60
# "login_failed" counts codes of a second factor, for their account; passwords are counted by `studio.workspaces.throttle`.
ACCOUNT_RATE_LIMITS = {"login": "60/m/ip", "login_failed": "8/15m/key", "change_password": "8/15m/user"}
MFA_ADAPTER = "studio.workspaces.signing_in.FactorAdapter"
MFA_FORMS = {
    "login_webauthn": "studio.workspaces.passkeys.SignInByPasskey",
    "reauthenticate_webauthn": "studio.workspaces.passkeys.ConfirmByPasskey",
    "authenticate_webauthn": "studio.workspaces.passkeys.SecondFactor",
    "add_webauthn": "studio.workspaces.passkeys.NewPasskey",
}
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
MFA_ALLOW_UNVERIFIED_EMAIL = True  # whoever came by a link that was handed over can add a factor, too
MFA_RECOVERY_CODE_DIGITS = 10
MFA_TOTP_TOLERANCE = 1  # clocks of phones are off by some seconds
SOCIALACCOUNT_ADAPTER = "studio.workspaces.signing_in.CompanyAdapter"
SOCIALACCOUNT_EMAIL_AUTHENTICATION = SOCIALACCOUNT_EMAIL_AUTHENTICATION_AUTO_CONNECT = True
SOCIALACCOUNT_LOGIN_ON_GET = True  # a form's answer may not lead elsewhere: the pages' security policy
SOCIALACCOUNT_PROVIDERS = openid_connect(OIDC_URL, name=OIDC_NAME, client_id=OIDC_CLIENT_ID, secret=OIDC_CLIENT_SECRET)
MAIL_BACKEND = f"django.core.mail.backends.{'smtp' if SMTP_URL else 'dummy'}.EmailBackend"
MAIL_OPTIONS = smtp(SMTP_URL) if SMTP_URL else {}
DEFAULT_FROM_EMAIL = MAIL_FROM or "nobody@localhost"
if django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": MAIL_BACKEND, "OPTIONS": MAIL_OPTIONS}}
else:
    EMAIL_BACKEND = MAIL_BACKEND
    if SMTP_URL:
        EMAIL_HOST, EMAIL_PORT, EMAIL_TIMEOUT = MAIL_OPTIONS["host"], MAIL_OPTIONS["port"], MAIL_OPTIONS["timeout"]
        EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = MAIL_OPTIONS["username"], MAIL_OPTIONS["password"]
        EMAIL_USE_TLS, EMAIL_USE_SSL = MAIL_OPTIONS["use_tls"], MAIL_OPTIONS["use_ssl"]
# Counts tries to sign in; with the few entries that are usual, other names would push out the one that is being guessed at.
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "OPTIONS": {"MAX_ENTRIES": 100_000}}}

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
USE_THOUSAND_SEPARATOR = False

STATIC_URL = "/static/"
STATICFILES_DIRS = [ROOT / "static"]
SERVESTATIC_USE_FINDERS = True
SERVESTATIC_AUTOREFRESH = DEBUG

FILE_UPLOAD_PERMISSIONS = 0o600
FILE_UPLOAD_TEMP_DIR = DATA_DIR / "tmp"
FILE_UPLOAD_TEMP_DIR.mkdir(exist_ok=True, mode=0o700)
DATA_UPLOAD_MAX_MEMORY_SIZE = 1 << 20
DATA_UPLOAD_MAX_NUMBER_FIELDS = 500
DATA_UPLOAD_MAX_NUMBER_FILES = 1

SESSION_COOKIE_AGE = 14 * 24 * 3600
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SESSION_COOKIE_NAME = "__Host-session" if HTTPS else "session"
CSRF_COOKIE_NAME = "__Host-csrf" if HTTPS else "csrf"
CSRF_COOKIE_HTTPONLY = True
SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 3600 if HTTPS else 0
# Subdomains, and the browsers' own lists, are for whoever owns the domain to decide.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]
if not SMTP_URL:  # nothing is mailed then, and every page that would says so
    SILENCED_SYSTEM_CHECKS.append("mail.E001")
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if env_bool("BEHIND_PROXY") else None
SECURE_REFERRER_POLICY = "same-origin"  # no-referrer would send forms with the origin null
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "manifest-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
        "object-src": [NONE],
    }
}

# Training has no time limit: a stop, a lost heartbeat or its end ends it.
RQ_QUEUES = {
    name: {"URL": REDIS_URL, "DEFAULT_TIMEOUT": -1, "DEFAULT_RESULT_TTL": 3600, "SERIALIZER": "rq.serializers.JSONSerializer"}
    for name in ("train", "files")
}
RQ_SHOW_ADMIN_LINK = False

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {"studio": {"level": "INFO"}, "django.request": {"level": "ERROR"}},
}
