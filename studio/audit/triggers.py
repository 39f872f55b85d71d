"""What keeps the database itself from changing or deleting audit records, whoever asks it to.

A later migration that remakes the table on SQLite drops them: it ends with `make`, and `manage.py check_audit` says where they are missing.
"""

from typing import Any

TABLE = "audit_auditrecord"
NAMES = ("audit_kept_update", "audit_kept_delete", "audit_kept_replace", "audit_kept_truncate")
FROZEN = (
    *("id", "workspace_id", "client_id", "client_name", "user_id", "user_email", "key", "at", "ip"),
    *("verb", "object_kind", "object_id", "label", "change"),
)
"""Set once, at the insert. The seal, `place` and `sha256`, is set once after that."""
CHANGED = "An audit record is never changed."
DELETED = "An audit record is never deleted."

SQLITE = [
    f"""CREATE TRIGGER audit_kept_update BEFORE UPDATE ON {TABLE}
        WHEN OLD.place IS NOT NULL OR {" OR ".join(f'OLD."{column}" IS NOT NEW."{column}"' for column in FROZEN)}
        BEGIN SELECT RAISE(ABORT, '{CHANGED}'); END""",
    f"CREATE TRIGGER audit_kept_delete BEFORE DELETE ON {TABLE} BEGIN SELECT RAISE(ABORT, '{DELETED}'); END",
    # INSERT OR REPLACE deletes without asking the trigger above.
    f"""CREATE TRIGGER audit_kept_replace BEFORE INSERT ON {TABLE} WHEN EXISTS (SELECT 1 FROM {TABLE} WHERE id = NEW.id)
        BEGIN SELECT RAISE(ABORT, '{CHANGED}'); END""",
]
POSTGRESQL = [
    """CREATE OR REPLACE FUNCTION audit_kept() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation'; END $$""",
    f"""CREATE TRIGGER audit_kept_update BEFORE UPDATE ON {TABLE} FOR EACH ROW
        WHEN (OLD.place IS NOT NULL OR {" OR ".join(f'OLD."{column}" IS DISTINCT FROM NEW."{column}"' for column in FROZEN)})
        EXECUTE FUNCTION audit_kept('{CHANGED}')""",
    f"CREATE TRIGGER audit_kept_delete BEFORE DELETE ON {TABLE} FOR EACH ROW EXECUTE FUNCTION audit_kept('{DELETED}')",
    f"CREATE TRIGGER audit_kept_truncate BEFORE TRUNCATE ON {TABLE} FOR EACH STATEMENT EXECUTE FUNCTION audit_kept('{DELETED}')",
]


def make(connection: Any) -> None:
    drop(connection)
    with connection.cursor() as cursor:
        for statement in POSTGRESQL if connection.vendor == "postgresql" else SQLITE:
            cursor.execute(statement)


def drop(connection: Any) -> None:
    of_table = f" ON {TABLE}" if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        for name in NAMES:
            cursor.execute(f"DROP TRIGGER IF EXISTS {name}{of_table}")


def missing(connection: Any) -> bool:
    """True where the database would let somebody change or delete a record."""
    names = (
        "SELECT tgname FROM pg_trigger" if connection.vendor == "postgresql" else "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    )
    with connection.cursor() as cursor:
        cursor.execute(names)
        found = {name for (name,) in cursor.fetchall()}
    return not {"audit_kept_update", "audit_kept_delete"} <= found
