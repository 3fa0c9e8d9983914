"""An auth manager with rights on single DAGs, as those of FAB or Keycloak have them."""

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class PerDagAuthManager(SimpleAuthManager):
    """The roles of Airflow's simple one; and a user whose name is ``only <DAG>`` may see nothing but that DAG."""

    def is_authorized_dag(self, *, user: Any, details: Any = None, **more: Any) -> bool:
        """Ask for the role, and then for the name."""
        ours = not user.username.startswith("only ") or not (details and details.id)
        return super().is_authorized_dag(user=user, details=details, **more) and (
            ours or user.username == f"only {details.id}"
        )
