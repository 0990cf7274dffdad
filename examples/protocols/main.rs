//! Market data and orders of exchanges by sessions, whose protocols are files to copy:
//! `binance.rs`, `deribit.rs`, `htx.rs`, `kraken.rs` and `okx.rs`, each with `reply.rs`. The
//! exchanges are simulated, and cut every connection meanwhile.
//!
//!     cargo run --release --example protocols

mod binance;
mod deribit;
mod htx;
mod kraken;
mod okx;
mod reply;

use std::error::Error;
use std::time::Duration;

use tautline::Event;
use tautline::session::{Session, SessionHandle};
use tautline::testing::exchange::{Exchange, Misbehavior};

/// Long enough for everything here.
const SOON: Duration = Duration::from_secs(10);

/// The number of data messages that are read before and after the cut.
const MESSAGES: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();

    let exchange = Exchange::binance().tick(Duration::from_millis(5)).start();
    let connects = binance::connect_limit();
    let streams = binance::client(&exchange.url())
        .name("binance streams")
        .connect_limit(connects.clone())
        .send_limit(binance::message_limit())
        .session(binance::Streams)
        .batch(200, 16 << 10)
        .topics_max(1024)
        .start()?;
    streams.handle().subscribe(["btcusdt@bookTicker", "ethusdt@bookTicker"])?;
    watch(&exchange, &streams)?;

    // A program that trades for real signs with its key here.
    let api = binance::WebSocketApi::new("key", |_| "signature".into());
    let trading = binance::client(&exchange.private_url())
        .name("binance orders")
        .connect_limit(connects)
        .session(api)
        .connect()?;
    place(trading.handle(), |handle, id| {
        let order = binance::MarketOrder { symbol: "BTCUSDT", side: "BUY", quantity: "0.001", id };
        let fate = binance::fate(handle.call(order.place()));
        let known = binance::fate(handle.call(binance::order_status("BTCUSDT", id)));
        format!("{fate:?}, and Binance says {known:?}")
    });
    finish(&exchange);

    let exchange = Exchange::okx().tick(Duration::from_millis(5)).start();
    let connects = okx::connect_limit();
    let public = okx::client(&exchange.url())
        .name("okx books")
        .connect_limit(connects.clone())
        .session(okx::Okx::public())
        .batch(100, 60 << 10)
        .start()?;
    public.handle().subscribe(["books:BTC-USDT", "tickers:ETH-USDT"])?;
    watch(&exchange, &public)?;

    let login = okx::Login::new("key", "passphrase", |_| "signature".into());
    let private = okx::client(&exchange.private_url())
        .name("okx orders")
        .connect_limit(connects)
        .session(okx::Okx::private(login))
        .connect()?;
    private.handle().subscribe(["orders:ANY"])?;
    place(private.handle(), |handle, id| {
        let order = okx::MarketOrder { instrument: "BTC-USDT", side: "buy", size: "0.001", id };
        format!("{:?}", okx::fate(handle.call(order.place())))
    });
    finish(&exchange);

    let exchange = Exchange::deribit().tick(Duration::from_millis(5)).start();
    let public = deribit::client(&exchange.url())
        .name("deribit books")
        .session(deribit::Deribit::public())
        .batch(100, 16 << 10)
        .start()?;
    public.handle().subscribe(["book.BTC-PERPETUAL.100ms", "trades.ETH-PERPETUAL.100ms"])?;
    watch(&exchange, &public)?;

    let login = deribit::Login::new("client", |_| "signature".into());
    let private = deribit::client(&exchange.private_url())
        .name("deribit orders")
        .session(deribit::Deribit::private(login))
        .connect()?;
    private.handle().subscribe(["user.orders.any.any.raw"])?;
    place(private.handle(), |handle, id| {
        let instrument = "BTC-PERPETUAL";
        let order = deribit::MarketOrder { instrument, side: "buy", amount: 10.0, id };
        let fate = deribit::fate(handle.call(order.place()));
        let known = deribit::fate(handle.call(deribit::order_status("BTC", id)));
        format!("{fate:?}, and Deribit says {known:?}")
    });
    finish(&exchange);

    let exchange = Exchange::kraken().tick(Duration::from_millis(5)).start();
    let connects = kraken::connect_limit();
    let public = kraken::client(&exchange.url())
        .name("kraken books")
        .connect_limit(connects.clone())
        .session(kraken::Kraken)
        .batch(50, 16 << 10)
        .start()?;
    public.handle().subscribe(["book/BTC/USD", "trade/ETH/USD"])?;
    watch(&exchange, &public)?;

    // A program that trades for real asks for a token by REST here.
    let private = kraken::private_client(&exchange.private_url(), |_| Ok("token".into()))
        .name("kraken orders")
        .connect_limit(connects)
        .session(kraken::Kraken)
        .connect()?;
    private.handle().subscribe(["executions"])?;
    place(private.handle(), |handle, id| {
        let order = kraken::MarketOrder { symbol: "BTC/USD", side: "buy", quantity: 0.001, id };
        format!("{:?}", kraken::fate(handle.call(order.place())))
    });
    finish(&exchange);

    let exchange = Exchange::htx().tick(Duration::from_millis(5)).start();
    let market = htx::client(&exchange.url())
        .name("htx books")
        .send_limit(htx::subscription_limit())
        .session(htx::Htx::market());
    let (books, topic) = (htx::Books::new(market.handle()), "market.btcusdt.mbp.150");
    market.handle().subscribe([topic])?;
    let market = market.start_with(books.clone())?;
    for epoch in 1..=2 {
        // A snapshot and the updates behind it, before and after the cut.
        let book = || books.book(topic);
        let is_whole = |_: &Exchange| book().epoch == epoch && book().applied >= MESSAGES;
        assert!(exchange.wait_until(SOON, is_whole));
        println!("{topic}: {:?}", book());
        exchange.misbehave(Misbehavior::Disconnect);
    }
    drop(market);

    let login = htx::Login::new("key", |_| "signature".into());
    let orders = htx::client(&exchange.private_url())
        .name("htx orders")
        .session(htx::Htx::orders(login))
        .connect()?;
    place(orders.handle(), |handle, id| {
        let order = htx::MarketOrder { symbol: "btcusdt", side: "buy", amount: "0.001", id };
        format!("{:?}", htx::fate(handle.call(order.place())))
    });
    finish(&exchange);
    Ok(())
}

/// Prints what the exchange has recorded.
fn finish(exchange: &Exchange) {
    println!("{} orders in the ledger", exchange.orders().len());
    assert!(exchange.violations().is_empty(), "the protocol keeps to the rules");
}

/// Reads data, has the connection cut, and reads on: the session has subscribed again.
fn watch(exchange: &Exchange, session: &Session) -> Result<(), Box<dyn Error>> {
    let mut events = session.events();
    let (mut count, mut epoch) = (0, 1);
    while count < MESSAGES || epoch == 1 {
        match events.next_timeout(SOON) {
            Ok(Event::Message(message)) => {
                if message.epoch() > epoch {
                    (count, epoch) = (0, message.epoch());
                }
                count += 1;
                if (count, epoch) == (MESSAGES, 1) {
                    exchange.misbehave(Misbehavior::Disconnect);
                }
            }
            Ok(Event::Session(event)) => println!("{event:?}"),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Places three orders, and prints what has become of them.
fn place(handle: &SessionHandle, place: impl Fn(&SessionHandle, &str) -> String) {
    for number in 1..=3 {
        let id = format!("bot{number}");
        println!("order {id}: {}", place(handle, &id));
    }
}
