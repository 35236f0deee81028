# What people really run, as its own clients see it from inside a pod: curl, psql and redis-cli of Debian. Whatever
# comes otherwise than it was sent ends the script with a word about it. $1: the servers' host; $2: "http" when a
# policy makes the proxy read HTTP, "tcp" when it does not.
set -eu
server=$1
read_as=$2
web=http://$server:8080
curl="curl -sS --max-time 20"
# Something that has all bytes in it.
file=/usr/bin/curl

die() {
    echo "$*" >&2
    exit 1
}

sum_of() {
    # shellcheck disable=SC2046 # Two words: the sum and the file's name.
    set -- $(sha256sum)
    echo "$1"
}

length=$(($(wc -c <$file)))
sum=$(sum_of <$file)
nothing=$(sum_of </dev/null)

# Every verb, with a body of known length and with one in chunks.
for verb in GET POST PUT PATCH DELETE OPTIONS TRACE PROPFIND QUERY; do
    wanted="200 $verb /sum HTTP/1.1 $length $sum"
    for framing in "X-Framing: length" "Transfer-Encoding: chunked" "Expect: 100-continue"; do
        said=$($curl -X $verb -H "$framing" --data-binary @$file -o /dev/null -w '%{http_code} %header{x-seen}' $web/sum)
        [ "$said" = "$wanted" ] || die "$verb with $framing: $said, not $wanted"
    done
done
said=$($curl -I -o /dev/null -w '%{http_code} %header{x-seen}' $web/head)
[ "$said" = "200 HEAD /head HTTP/1.1 0 $nothing" ] || die "HEAD: $said"
said=$($curl -X OPTIONS --request-target '*' $web)
[ "$said" = "OPTIONS * HTTP/1.1 0 $nothing" ] || die "OPTIONS *: $said"
echo "curl: 11 verbs, bodies by length and in chunks"

# Old clients.
for verb in GET POST PUT; do
    said=$($curl --http1.0 -X $verb --data-binary @$file $web/old)
    [ "$said" = "$verb /old HTTP/1.0 $length $sum" ] || die "HTTP/1.0 $verb: $said"
done
echo "curl: HTTP/1.0"

# What goes there comes back, in chunks and by length; many requests over one connection.
[ "$($curl --data-binary @$file $web/echo | sum_of)" = "$sum" ] || die "an echo came back otherwise"
[ "$($curl -T - $web/echo <$file | sum_of)" = "$sum" ] || die "an echo in chunks came back otherwise"
opened=$($curl -o /dev/null -o /dev/null -o /dev/null -w '%{num_connects}' $web/1 $web/2 $web/3)
[ "$opened" = 100 ] || die "three requests opened connections as $opened says"
echo "curl: echoes, and three requests over one connection"

if [ "$read_as" = http ]; then
    for case in "GET /closed 403" "POST /x/../closed 403" "GET /%63losed 403" "CONNECT / 405"; do
        # shellcheck disable=SC2086 # Three words.
        set -- $case
        said=$($curl --path-as-is -X "$1" -o /dev/null -w '%{http_code}' "$web$2")
        [ "$said" = "$3" ] || die "$1 $2: $said, not $3"
    done
    echo "curl: what the policy closes is closed"
fi

# PostgreSQL: what the server makes, what it makes of its own rows sent back, and a wait within a session.
sql() {
    psql -q -X -A -t -h "$server" -U postgres -v ON_ERROR_STOP=1 "$@"
}
rows="select g, md5(g::text) from generate_series(1, 50000) g"
sql -c "copy ($rows) to stdout" >/tmp/rows
wanted=$(sql -c "select encode(sha256(convert_to(string_agg(n || E'\t' || h || E'\n', '' order by n), 'UTF8')), 'hex') from ($rows) t(n, h)")
[ "$(sum_of </tmp/rows)" = "$wanted" ] || die "rows of PostgreSQL came otherwise"
said=$(
    sql <<-SQL
	create temp table t (n int, h text);
	\copy t from '/tmp/rows'
	select pg_sleep(0.3);
	select count(*), bool_and(h = md5(n::text)) from t;
	SQL
)
[ "$said" = "
50000|t" ] || die "PostgreSQL has other rows than were sent: $said"
echo "psql: $(wc -c </tmp/rows) bytes of rows there and back"

# Redis: any bytes as a value, and many commands at once.
redis="redis-cli -h $server"
[ "$($redis -x set "$HOSTNAME" <$file)" = OK ] || die "Redis did not take a value"
[ "$($redis --raw get "$HOSTNAME" | sum_of)" = "$({ cat $file && echo; } | sum_of)" ] || die "a value of Redis came otherwise"
i=0
while [ $i -lt 2000 ]; do
    printf 'INCR %s-count\r\n' "$HOSTNAME"
    i=$((i + 1))
done >/tmp/commands
before=$($redis incr "$HOSTNAME-count")
said=$($redis --pipe </tmp/commands)
after=$($redis incr "$HOSTNAME-count")
case $said in
*"errors: 0, replies: 2000"*) ;;
*) die "Redis answered $said" ;;
esac
[ "$((after - before))" = 2001 ] || die "Redis counted from $before to $after"
echo "redis-cli: a value of $length bytes, 2000 commands"
