// A server on net/http, of HTTP/1 and of HTTP/2 without TLS, that says of each request what it saw: method, target, and the length of its body.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr())
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		length, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("X-Seen", fmt.Sprintf("%s %s %d", r.Method, r.RequestURI, length))
		w.WriteHeader(http.StatusOK)
		io.WriteString(w, "ok")
	})
	// Without it, the server answers OPTIONS * by itself.
	server := http.Server{Handler: handler, DisableGeneralOptionsHandler: true, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	panic(server.Serve(listener))
}
