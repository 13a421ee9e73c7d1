#!/bin/sh
# The least that a node of a farm needs on RabbitMQ, given to one user.
#
#   permissions.sh FARM USER [VHOST]
#
# Run it on a broker as a user that may run rabbitmqctl (root, or rabbitmq). USER and VHOST must exist already:
#   rabbitmqctl add_user resumed            (asks for the password)
#   rabbitmqctl add_vhost FARM              (a virtual host of the farm's own: see below; without VHOST it is "/")
#
# What is granted, and why:
#   configure  ^resumed\.FARM\.   declare the farm's exchanges and this node's queues, and the leader's queue: the lease
#   write      ^resumed\.FARM\.   publish to the exchanges; bind queues
#              ^amq\.default$     publish straight to the leader's queue and to a node's queues, through the default exchange
#   read       ^resumed\.FARM\.   consume from the queues; bind to the exchanges
#
# The broker cannot limit which queue is reached through the default exchange. So every account on the vhost that may write to
# amq.default, such as another farm's user, can send to this farm's queues. It cannot read them, and what it sends is refused,
# because it is not sealed with the farm's secret. But it can deny service: resumed.FARM.leader takes 4,096 messages and 16 MiB, and
# drops the oldest beyond that. While another account fills it, reports, joins and operators' requests are lost: nodes are
# shown as missing, nodes that start get no key, and rotate and revoke find no leader. Give each farm a vhost of its own.
set -eu

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "usage: $0 FARM USER [VHOST]" >&2
    exit 2
fi
farm=$1
user=$2
vhost=${3:-/}

case $farm in
    '' | *[!a-z0-9-]*)
        echo "$0: \"$farm\" is no farm's name: 1 to 63 of a-z, 0-9 and -" >&2
        exit 2
        ;;
esac
if [ ${#farm} -gt 63 ]; then
    echo "$0: the farm's name has ${#farm} characters, 63 are allowed" >&2
    exit 2
fi

exec rabbitmqctl set_permissions --vhost "$vhost" "$user" \
    "^resumed\\.$farm\\." "^(resumed\\.$farm\\.|amq\\.default\$)" "^resumed\\.$farm\\."
