#!/bin/sh
# The least that a node of a farm needs on RabbitMQ, given to one user.
#
#   permissions.sh FARM USER [VHOST]
#
# Run it on a broker as a user that may run rabbitmqctl (root, or rabbitmq). USER must exist already:
#   rabbitmqctl add_user resumed            (asks for the password)
#
# What is granted, and why:
#   configure  ^resumed\.FARM\.   declare the farm's exchanges and this node's queues, and the leader's queue: the lease
#   write      ^resumed\.FARM\.   publish to the exchanges; bind queues
#              ^amq\.default$     publish straight to the leader's queue and to a node's queues, through the default exchange
#   read       ^resumed\.FARM\.   consume from the queues; bind to the exchanges
#
# The broker cannot limit which queue is reached through the default exchange. A user of one farm can therefore send to
# another farm's queues on the same vhost; it cannot read them, and what it sends is refused there, because it is not
# sealed with that farm's secret. Give each farm a vhost of its own where even that is too much.
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
