"""The Celery application, `celery -A worker worker|beat|flower`. docs/decisions.md gives the reason of each setting."""

import os
import warnings

from celery import Celery
from celery.exceptions import SecurityWarning

from moorage import settings as settings_module
from moorage.errors import ConfigError
from worker import bootsteps, queues, schedule

# Flower reads its environment after loading the app; its own default listens on every interface.
os.environ.setdefault("FLOWER_ADDRESS", "127.0.0.1")
# Containers run the worker as root; the warning is about pickle, and only JSON is accepted here.
warnings.filterwarnings("ignore", category=SecurityWarning)


def create_app() -> Celery:
    """Return the application, configured from the settings; only a worker imports the steps."""
    settings = settings_module.get_settings()
    broker = settings.broker_url.get_secret_value()
    bootsteps.touch_liveness_file(settings.alive_file)
    app = Celery("moorage", broker=broker, include=["worker.celery_tasks"])
    app.conf.update(
        task_queues=queues.build_queues(broker),
        task_default_queue="quick",
        task_create_missing_queues=False,
        task_routes={task: {"queue": queues.QUEUE_BY_STEP[step]} for step, task in queues.TASK_BY_STEP.items()},
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=True,
        task_acks_on_failure=True,
        task_acks_on_timeout=True,
        task_reject_on_worker_lost=False,
        task_retry_on_worker_lost=False,
        task_send_sent_event=False,
        worker_prefetch_multiplier=1,
        worker_max_tasks_per_child=500,
        worker_max_memory_per_child=400_000,
        worker_send_task_events=False,  # Flower enables events itself
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_detect_quorum_queues=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2,
        broker_heartbeat=20,  # RabbitMQ: a worker detects a dead connection and reconnects within 40 s
        broker_pool_limit=10,
        broker_pool_acquire_timeout=2,
        broker_transport_options=_transport(broker),
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0.05, "interval_max": 0.05},
        worker_consumer="worker.consumer:Consumer",
        beat_scheduler="celery.beat:Scheduler",
        beat_enable_remote_control=True,
        beat_max_loop_interval=1,
        beat_schedule=schedule.build_beat_schedule(settings),
        enable_utc=True,
        timezone="UTC",
    )
    app.steps["worker"].add(bootsteps.ChildReaper)
    return app


def _transport(broker: str) -> dict[str, object]:
    if queues.is_rabbitmq(broker):
        return {"confirm_publish": True}
    return {
        "visibility_timeout": 1800,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        "socket_timeout": 5,
        "socket_connect_timeout": 2,
        "socket_keepalive": True,
        "health_check_interval": 10,
    }


try:
    app = create_app()
except ConfigError as error:  # for other exceptions Celery prints its usage and a traceback
    raise SystemExit(f"moorage: {error}") from error
