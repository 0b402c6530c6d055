"""A conversion webhook: what v1 calls brightness, v1beta1 calls level. Arguments: port, certificate, key."""

import http.server, json, ssl, sys

FIELDS = {"example.com/v1": "brightness", "example.com/v1beta1": "level"}


def convert(lamp, version):
    spec = lamp.get("spec", {})
    if lamp["apiVersion"] != version and FIELDS[lamp["apiVersion"]] in spec:
        spec[FIELDS[version]] = spec.pop(FIELDS[lamp["apiVersion"]])
    return lamp | {"apiVersion": version}


class Webhook(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        review = json.loads(self.rfile.read(int(self.headers["content-length"])))
        request = review.pop("request")
        lamps = [convert(lamp, request["desiredAPIVersion"]) for lamp in request["objects"]]
        review["response"] = {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": lamps}
        body = json.dumps(review).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Webhook)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server.socket = context.wrap_socket(server.socket, server_side=True)
print("converts", file=sys.stderr, flush=True)
server.serve_forever()
