// An echo server of Node's ws library over TLS: `server.cjs CERTIFICATE KEY` prints its port, and ends with its standard input.
const fs = require('fs');
const https = require('https');
const { WebSocketServer } = require('ws');

const server = https.createServer({ cert: fs.readFileSync(process.argv[2]), key: fs.readFileSync(process.argv[3]) });
const server = new WebSocketServer({ server, maxPayload: 64 << 20, perMessageDeflate: { threshold: 0 } });
server.on('connection', (connection) => {
  connection.ping('are you there');
  // The client's pong has to come before anything else is said.
  connection.once('pong', () => connection.send('hello'));
  connection.on('message', (message, isBinary) => {
    if (!isBinary && message.toString() === 'close') return connection.close(4001, 'as you asked');
    connection.send(message, { binary: isBinary });
  });
});
server.listen(0, 'localhost', () => console.log(server.address().port));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
