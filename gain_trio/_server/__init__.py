"""Floor 5: serving."""

from ._balancer import BALANCERS, Balancer, BalancerName, ConsumerView
from ._checks import (
    check_datagram_handler,
    check_handler,
    check_timeout,
    is_class_of_callbacks,
    why_not_called,
)
from ._config_checks import MOST_WORKERS, at_least, check_balancer, check_flag, one_of
from ._consumer import AttendingHandler, Handler, LivingHandler
from ._datagram_server import DatagramHandler, DatagramServer, serve_datagrams
from ._drain_limit import DrainLimit
from ._failures import is_cancellation, only_one_of, own_fault, ungrouped
from ._flags import Flag, flags_of
from ._handler_tasks import RequestInProgress
from ._listening import serve_listeners
from ._log_throttle import log_throttle, since_last
from ._logging import FORMATS, LEVELS, JsonFormatter, LineFormatter, configure_logging
from ._object_names import check_module_name, has_no, is_missing
from ._opened import OpenedEndpoint, OpenedListener
from ._processes import HIGH_PRIORITY, WorkerFailed, take_process_priority
from ._serve import serve
from ._server import Server
from ._server_config import Architecture, ContextSource, ServerConfig
from ._server_lifespan import Lifespan, check_lifespan, lifespan_value
from ._server_options import ServerOptions, merged
from ._service_manager import service_manager
from ._signals import SignalTarget, no_workers_to_replace, obey_signals, received_signals
from ._snapshot import VERSION as CONTROL_VERSION
from ._statistics import BUCKETS, DatagramServerStatistics, RequestStatistics, ServerStatistics
from ._time_limits import LAST_CALLBACK, SHUTDOWN_SECONDS

__all__ = [
    "BALANCERS",
    "BUCKETS",
    "CONTROL_VERSION",
    "FORMATS",
    "HIGH_PRIORITY",
    "LAST_CALLBACK",
    "LEVELS",
    "MOST_WORKERS",
    "SHUTDOWN_SECONDS",
    "Architecture",
    "AttendingHandler",
    "Balancer",
    "BalancerName",
    "ConsumerView",
    "ContextSource",
    "DatagramHandler",
    "DatagramServer",
    "DatagramServerStatistics",
    "DrainLimit",
    "Flag",
    "Handler",
    "JsonFormatter",
    "Lifespan",
    "LineFormatter",
    "LivingHandler",
    "OpenedEndpoint",
    "OpenedListener",
    "RequestInProgress",
    "RequestStatistics",
    "Server",
    "ServerConfig",
    "ServerOptions",
    "ServerStatistics",
    "SignalTarget",
    "WorkerFailed",
    "at_least",
    "check_balancer",
    "check_datagram_handler",
    "check_flag",
    "check_handler",
    "check_lifespan",
    "check_module_name",
    "check_timeout",
    "configure_logging",
    "flags_of",
    "has_no",
    "is_cancellation",
    "is_class_of_callbacks",
    "is_missing",
    "lifespan_value",
    "log_throttle",
    "merged",
    "no_workers_to_replace",
    "obey_signals",
    "one_of",
    "only_one_of",
    "own_fault",
    "received_signals",
    "serve",
    "serve_datagrams",
    "serve_listeners",
    "service_manager",
    "since_last",
    "take_process_priority",
    "ungrouped",
    "why_not_called",
]
