"""The Celery application, `celery -A worker worker|beat|flower`. docs/decisions.md gives the reason of each setting."""

import importlib
import logging
import os
import warnings
from typing import Any

from celery import Celery, signals
from celery.exceptions import SecurityWarning

from moorage import broker_urls, logs
from moorage import settings as settings_module
from moorage.errors import ConfigError
from worker import bootsteps, broker_errors, broker_transports, queues, schedule

log = logs.get_logger(__name__)

# Flower reads its environment after loading the app. By default it listens on every interface and shows no results.
os.environ.setdefault("FLOWER_ADDRESS", "127.0.0.1")
os.environ.setdefault("FLOWER_TASKS_COLUMNS", "name,state,result,exception,args,received,worker,uuid")
# Containers run the worker as root; the warning is about pickle, and only JSON is accepted here.
warnings.filterwarnings("ignore", category=SecurityWarning)


@signals.setup_logging.connect
def _set_up_logging(**_: object) -> None:
    settings = settings_module.get_settings()
    logs.configure_logging(settings.log_level, settings.log_format)
    for handler in logging.getLogger().handlers:
        handler.addFilter(broker_errors.drop_traceback)


@signals.celeryd_init.connect
def _load_tasks(**_: object) -> None:
    """Define the tasks, and load what they use, in a worker: beat and Flower know them by name."""
    _set_up_logging()  # Celery does after the checks of `worker_init`, which may wait and say for what
    importlib.import_module("worker.celery_tasks")


@signals.worker_ready.connect
def _log_worker_ready(sender: Any, **_: object) -> None:
    log.info("worker.ready", worker=sender.hostname, queues=",".join(sorted(sender.app.amqp.queues.consume_from)))


def create_app() -> Celery:
    """Return the application, configured from the settings; only a worker imports the steps."""
    settings = settings_module.get_settings()
    spec = broker_urls.parse_broker_url(settings.broker_url.get_secret_value())
    broker = spec.url
    broker_transports.register_transports()
    bootsteps.liveness_file = settings.alive_file
    for signal in (signals.heartbeat_sent, signals.after_task_publish):  # every 10 s; of beat: wakes send no signal
        signal.connect(bootsteps.touch_liveness_file)
    app = Celery("moorage", broker=broker)
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
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0.05, "interval_max": 0.05},
        worker_consumer="worker.consumer:Consumer",
        beat_scheduler="worker.beat:Scheduler",
        beat_enable_remote_control=True,
        beat_max_loop_interval=1,
        beat_schedule=schedule.build_beat_schedule(settings),
        enable_utc=True,
        timezone="UTC",
    )
    app.conf.update(_describe_broker(spec))
    app.steps["worker"].add(bootsteps.ChildReaper)
    return app


def _describe_broker(spec: broker_urls.BrokerSpec) -> dict[str, object]:
    return {
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": 2,
        "broker_heartbeat": 20,  # RabbitMQ: a worker detects a dead connection and reconnects within 40 s
        "broker_pool_limit": 10,
        "broker_pool_acquire_timeout": 2,
        "broker_read_url": spec.url,  # before broker_url, which Celery reads from the environment, parameters and all
        "broker_write_url": spec.url,
        "broker_transport_options": broker_transports.build_options(spec) or {"confirm_publish": True},
        "broker_use_ssl": spec.ssl or False,
    }


try:
    app = create_app()
except ConfigError as error:  # for other exceptions Celery prints its usage and a traceback
    raise SystemExit(f"moorage: {error}") from error
