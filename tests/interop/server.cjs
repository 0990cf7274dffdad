// An echo server of Node's ws library over TLS. `server.cjs CERTIFICATE KEY` prints its port, and
// ends at the end of its standard input.
const fs = require('fs');
const https = require('https');
const { WebSocketServer } = require('ws');

const [certificate, key] = process.argv.slice(2).map((path) => fs.readFileSync(path));
const server = https.createServer({ cert: certificate, key });
const webSockets = new WebSocketServer({
  server,
  maxPayload: 64 << 20,
  perMessageDeflate: { threshold: 0 },
});
webSockets.on('connection', (connection) => {
  connection.ping('are you there');
  // Nothing is sent before the client's pong has come.
  connection.once('pong', () => connection.send('hello'));
  connection.on('message', (message, isBinary) => {
    if (!isBinary && message.toString() === 'close') return connection.close(4001, 'as you asked');
    connection.send(message, { binary: isBinary });
  });
});
server.listen(0, 'localhost', () => console.log(server.address().port));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
