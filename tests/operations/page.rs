//! The page for people, in a browser: what a person reads there, on a desk and on a phone, by day and by night.

use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use nix::sys::signal::Signal;
use resumed::internals::probe::{self, Client, Mode, Options};
use resumed::status::PageStatus;
use serde_json::Value;
use testkit::attacker::Attacker;
use testkit::broker::Broker;
use testkit::browser::{Browser, View};
use testkit::farm::{Farm, FarmSetup, Proxies, built, wait_for};

const VIEWS: [View; 4] = [
    View { name: "desktop-light", width: 1180, height: 900, mobile: false, scheme: "light" },
    View { name: "desktop-dark", width: 1180, height: 900, mobile: false, scheme: "dark" },
    View { name: "phone-light", width: 360, height: 740, mobile: true, scheme: "light" },
    View { name: "phone-dark", width: 360, height: 740, mobile: true, scheme: "dark" },
];

/// Every text on the page that is too faint for where it stands: what it says and its contrast (WCAG 2.2, 1.4.3). Large texts
/// are held to the same 4.5 as small ones.
const FAINT_TEXTS: &str = "
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const ground = node => {
        for (; node; node = node.parentElement) {
            const colour = parts(getComputedStyle(node).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
            if (colour[3] !== 0) throw new Error('half-transparent ground of ' + node.outerHTML);
        }
        return [255, 255, 255];
    };
    const faint = [];
    let looked = 0;
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const text = walk.currentNode, owner = text.parentElement;
        if (!text.data.trim() || !owner.checkVisibility() || owner.closest('script, style, noscript')) continue;
        const style = getComputedStyle(owner);
        if (parseFloat(style.opacity) < 1) throw new Error('half-transparent ' + owner.outerHTML);
        const colour = parts(owner instanceof SVGElement ? style.fill : style.color);
        const [a, b] = [luminance(colour), luminance(ground(owner))].sort((a, b) => b - a);
        const contrast = (a + 0.05) / (b + 0.05);
        looked += 1;
        if (contrast < 4.5) faint.push(text.data.trim() + ': ' + contrast.toFixed(2));
    }
    if (looked < 20) throw new Error('only ' + looked + ' texts');
    return faint;";

/// What reaches beyond the right edge of the page.
const TOO_WIDE: &str = "
    const page = document.scrollingElement;
    const width = page.clientWidth;
    if (page.scrollWidth <= width && width === innerWidth) return [];
    const wide = [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > width + 0.5);
    return [page.scrollWidth + ' of ' + width, ...wide.map(e => e.tagName + '#' + e.id + '.' + e.className)];";

/// Names that stand for nobody, references to nothing, and images without a text: what a screen reader would trip over.
const UNREADABLE: &str = "
    const wrong = [];
    for (const node of document.querySelectorAll('[aria-labelledby]')) {
        for (const id of node.getAttribute('aria-labelledby').split(' ')) {
            if (!document.getElementById(id)?.textContent.trim()) wrong.push('aria-labelledby ' + id);
        }
    }
    for (const node of document.querySelectorAll('svg')) {
        const told = node.getAttribute('aria-label') || node.closest('[aria-hidden=true], [role=img][aria-labelledby]');
        if (!told) wrong.push('svg ' + node.outerHTML);
    }
    const ids = [...document.querySelectorAll('[id]')].map(node => node.id);
    wrong.push(...ids.filter((id, at) => ids.indexOf(id) !== at).map(id => 'twice: ' + id));
    for (const tag of ['header', 'main', 'footer', 'h1']) {
        if (document.querySelectorAll(tag).length !== 1) wrong.push('not one ' + tag);
    }
    for (const table of document.querySelectorAll('table')) {
        if ([...table.querySelectorAll('thead th')].some(th => th.scope !== 'col')) wrong.push('a header without scope');
        if ([...table.querySelectorAll('tbody tr')].some(tr => tr.firstElementChild.scope !== 'row')) wrong.push('a row without header');
    }
    if (document.querySelectorAll('[aria-live]').length !== 1) wrong.push('not one live region');
    return wrong;";

/// Where screenshots are left to be looked at: `page/` beside the build.
fn screenshots() -> PathBuf {
    let build = built("resumed");
    let folder = build.ancestors().nth(2).expect("the target folder").join("page");
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    folder
}

/// Looks at the page from everywhere, and leaves screenshots.
fn look_from_everywhere(browser: &Browser, state: &str) {
    let mut grounds = Vec::new();
    for view in VIEWS {
        browser.look_as(view);
        browser.wait_until_drawn();
        for (what, script) in [("too faint", FAINT_TEXTS), ("too wide", TOO_WIDE), ("unreadable", UNREADABLE)] {
            assert_eq!(browser.run(script), Value::Array(Vec::new()), "{what} in {state}, {}", view.name);
        }
        grounds.push(browser.run("return getComputedStyle(document.body).backgroundColor"));
        browser.screenshot(&screenshots().join(format!("{state}-{}.png", view.name)));
    }
    assert_eq!((&grounds[0], &grounds[1]), (&grounds[2], &grounds[3]));
    assert_ne!(grounds[0], grounds[1], "dark and light are the same");
    browser.look_as(VIEWS[0]);
    for eyes in ["deuteranopia", "achromatopsia"] {
        browser.see_as(eyes);
        browser.screenshot(&screenshots().join(format!("{state}-{eyes}.png")));
    }
    browser.see_as("none");
}

/// The row of a node: the words and the icon of its state, and all of its text.
fn node_row(browser: &Browser, name: &str) -> (String, String, String) {
    let script = format!(
        "const row = [...document.querySelectorAll('#node-rows tr')].find(row => row.querySelector('th span').textContent === '{name}');
         return row ? [row.children[1].innerText.trim(), row.children[1].querySelector('use').getAttribute('href'), row.innerText] : ['', '', '']"
    );
    let found: Vec<String> = serde_json::from_value(browser.run(&script)).expect("three texts");
    let [state, icon, all] = <[String; 3]>::try_from(found).expect("three texts");
    let icon = if state.is_empty() { icon } else { icon.trim_start_matches("#i-").to_owned() };
    (state, icon, all)
}

#[test]
fn a_person_sees_who_is_in_step_who_is_not_and_when_the_node_itself_is_silent() {
    let broker = Broker::start();
    let mut farm = Farm::start_in_step(&FarmSetup {
        name: "edge".to_owned(),
        proxies: Proxies::Tickets,
        keys: "interval = \"30s\"\nkeep = 3\nsettle = \"1s\"".to_owned(),
        broker: "report_every = \"500ms\"".to_owned(),
        ..FarmSetup::new(3, &broker.uri())
    });
    let leader = farm.leader();
    let [asked, other] = farm.others(leader)[..] else { panic!("three hosts") };
    let name = |host: usize| format!("host{host}");
    let browser = Browser::start();
    browser.look_as(VIEWS[0]);
    browser.open(&farm.hosts[asked].daemon.page_url());

    // In step.
    let all_well = format!("All 3 nodes are in step, led by {}.", name(leader));
    browser.wait_for_text("#verdict", |text| text == all_well);
    browser.run("window.sinceTheBeginning = true");
    assert_eq!(browser.text("h1"), format!("Farm {}", farm.name()));
    let title = format!("✓ {}: {all_well}", farm.name());
    assert_eq!(browser.run("return document.title"), title.as_str());
    assert_eq!(browser.text("#fact-leader"), name(leader));
    assert_eq!(browser.text("#fact-step"), "3 of 3");
    assert_eq!(browser.text("#fact-broker"), "connected");
    for host in 0..3 {
        let (state, icon, all) = node_row(&browser, &name(host));
        assert_eq!((state.as_str(), icon.as_str()), ("in step", "good"), "{all}");
        assert_eq!(all.contains("leader"), host == leader, "{all}");
        assert_eq!(all.contains("this node"), host == asked, "{all}");
        assert!(all.contains("ats 9.") && all.contains(env!("CARGO_PKG_VERSION")), "{all}");
    }
    assert_eq!(browser.text("#warnings"), "");

    // Clients come, and sessions appear without a reload.
    let client = Client::new(Options::default()).expect("a client");
    let visit_every_pair = || probe::matrix(&client, &farm.targets(), Mode::Id, 1);
    let tile = |name: &str| format!("[data-name={name}] .count span");
    let shows_some = |text: &str| text.parse::<u64>().is_ok_and(|count| count > 0);
    for counted in ["published", "received", "inserted", "brought_back"] {
        let text = browser.wait_for_text(&tile(counted), |text| {
            visit_every_pair();
            shows_some(text)
        });
        let bars =
            browser.run(&format!("return document.querySelector('[data-name={counted}] .bars').getAttribute('d')"));
        assert!(bars.as_str().is_some_and(|path| path.starts_with('M')), "{counted}: {text}, {bars}");
    }
    assert_eq!(browser.text(&tile("refused")), "0");
    let words = browser.wait_for_text("#ring-words", |text| {
        visit_every_pair();
        text.contains("2 older keys still open tickets")
    });
    let status = farm.hosts[asked].daemon.try_status().expect("a status");
    let newest = &status.ring.keys[0];
    assert!(words.contains(" has sealed new tickets for ") && words.contains("takes over in"), "{words}");
    assert_eq!(browser.text("#key-rows"), "", "the table of keys is folded away");
    browser.run("document.querySelector('#key-details summary').click()");
    browser.wait_for_text("#key-rows", |text| text.contains(&newest.name_prefix) && text.contains("seals now"));
    let kinds = browser.run("return ['seals', 'opens', 'waits', 'nowline'].map(kind => document.querySelectorAll('#ring .' + kind).length > 0)");
    assert_eq!(kinds, serde_json::json!([true, true, true, true]), "{words}");
    browser.run("document.querySelector('#key-details summary').click()");
    look_from_everywhere(&browser, "healthy");
    assert_eq!(browser.console(), Vec::<String>::new());

    // One node stops, and somebody sends nonsense.
    farm.hosts[other].daemon.signal(Signal::SIGSTOP);
    let attacker = Attacker::join(&broker.uri(), farm.name(), &["pod"], &farm.secret);
    attacker.to_all(&Bytes::from_static(b"nonsense"));
    let late = format!("{} is not in step; the other 2 of 3 nodes are.", name(other));
    browser.wait_for_text("#verdict", |text| text == late);
    let (state, icon, all) = node_row(&browser, &name(other));
    assert_eq!((state.as_str(), icon.as_str()), ("not in step", "bad"), "{all}");
    for host in [leader, asked] {
        assert_eq!(node_row(&browser, &name(host)).0, "in step");
    }
    assert_eq!(browser.text("#fact-step"), "2 of 3");
    assert!(browser.text("#warning-list").contains(&format!("{} is not in step: last report", name(other))));
    assert_eq!(browser.run("return document.querySelector('#state').dataset.level"), "bad");
    assert!(browser.run("return document.title").as_str().is_some_and(|title| title.starts_with("▲ ")));
    browser.wait_for_text(&tile("refused"), shows_some);
    browser.wait_for_text("#reason-rows", |text| {
        text.contains("malformed") && text.contains("message refused: not a message")
    });
    look_from_everywhere(&browser, "out-of-step");
    browser.run("document.querySelector('#key-details summary').click()");
    look_from_everywhere(&browser, "with-a-table-of-keys");

    // It comes back, and is seen to.
    farm.hosts[other].daemon.signal(Signal::SIGCONT);
    browser.wait_for_text("#verdict", |text| text == all_well);
    assert_eq!(node_row(&browser, &name(other)).1, "good");
    assert_eq!(browser.text("#warnings"), "");
    assert_eq!(browser.console(), Vec::<String>::new());

    // A tab that nobody sees asks nothing for a minute, and calls nobody silent for that when it is seen again.
    browser.run(
        "const turn = hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true }); \
         document.dispatchEvent(new Event('visibilitychange')); }; \
         window.turn = turn; window.said = []; window.ticks = 0; \
         new MutationObserver(() => window.said.push(document.querySelector('#verdict').textContent)) \
             .observe(document.querySelector('#verdict'), { childList: true, characterData: true, subtree: true }); \
         turn(true); const now = performance.now.bind(performance); performance.now = () => now() + 60000; \
         setInterval(() => window.ticks++, 1000)",
    );
    wait_for("three ticks of a hidden page", || {
        let ticks = browser.run("return window.ticks");
        if ticks.as_u64() >= Some(3) { Ok(()) } else { Err(ticks.to_string()) }
    });
    browser.run("window.turn(false)");
    browser.wait_for_text("#freshness", |text| text.contains("just now"));
    let said = browser.run("return window.said").to_string();
    assert!(!said.contains("does not answer"), "{said}");
    browser.run("delete document.hidden");

    // The node that is asked freezes; then it is gone; then it is back.
    let silent = format!("{} does not answer.", name(asked));
    farm.hosts[asked].daemon.signal(Signal::SIGSTOP);
    browser.wait_for_text("#verdict", |text| text == silent);
    farm.hosts[asked].daemon.signal(Signal::SIGCONT);
    browser.wait_for_text("#verdict", |text| text == all_well);
    assert_eq!(browser.text("#stale"), "");
    farm.hosts[asked].daemon.stop();
    browser.wait_for_text("#verdict", |text| text == silent);
    let stale = browser.text("#stale");
    assert!(
        stale.starts_with("No answer from this node for ")
            && stale.ends_with(" What stands below is what it said last."),
        "{stale}"
    );
    look_from_everywhere(&browser, "no-answer");
    farm.hosts[asked].daemon.launch();
    browser.wait_for_text("#verdict", |text| text == all_well);
    assert_eq!(browser.text("#stale"), "");
    for line in browser.console() {
        assert!(line.contains("/farm.json - Failed to load resource: net::ERR_"), "{line}");
    }

    // Without the broker there is no leader to ask.
    broker.kill();
    let alone = format!("{0} is cut off from the broker. Only {0} is shown.", name(asked));
    browser.wait_for_text("#verdict", |text| text == alone);
    assert_eq!(browser.run("return document.querySelectorAll('#node-rows tr').length"), 1);
    assert_eq!(
        (browser.text("#fact-leader").as_str(), browser.text("#fact-broker").as_str()),
        ("none answers", "not connected")
    );
    look_from_everywhere(&browser, "no-broker");

    assert_eq!(browser.run("return window.sinceTheBeginning"), true, "it was loaded anew");
    let origin = farm.hosts[asked].daemon.page_url();
    let requests = browser.requests_of(&origin);
    assert!(requests.contains(&format!("{origin}farm.json")), "{requests:?}");
    for request in &requests {
        assert!(request.starts_with(&origin) || request.starts_with("data:"), "{request}");
    }
}

#[test]
fn a_name_that_looks_like_markup_is_a_name() {
    const NAME: &str = "<img/src=/x/onerror=document.body.remove()>&amp;<b>x</b>";
    let mut farm = Farm::lay_out(&FarmSetup { proxies: Proxies::None, ..FarmSetup::new(1, "") });
    let daemon = &mut farm.hosts[0].daemon;
    let text = fs::read_to_string(daemon.config()).expect("the configuration");
    assert!(text.contains("name = \"host0\"\n"), "{text}");
    fs::write(daemon.config(), text.replace("name = \"host0\"\n", &format!("name = \"{NAME}\"\n")))
        .expect("the configuration");
    daemon.launch();
    wait_for("the daemon's answer", || daemon.try_status());
    let browser = Browser::start();
    browser.open(&daemon.page_url());
    browser.wait_for_text("#verdict", |text| text == format!("{NAME} runs alone, without a broker."));
    assert_eq!(browser.text("#node-rows th span"), NAME);
    assert_eq!(browser.run("return document.querySelectorAll('img, b').length"), 0);
    browser.look_as(VIEWS[2]);
    assert_eq!(browser.run(TOO_WIDE), Value::Array(Vec::new()));
    browser.screenshot(&screenshots().join("markup.png"));

    // The policy holds: what somebody slips in all the same is neither run nor styled.
    assert_eq!(browser.console(), Vec::<String>::new());
    let slipped_in = browser.run(
        "const attempts = [
             () => document.body.append(Object.assign(document.createElement('script'), {text: 'window.slipped = 1'})),
             () => document.body.setAttribute('onclick', 'window.slipped = 1'),
             () => document.body.append(Object.assign(document.createElement('style'), {textContent: 'body { display: none }'})),
             () => { document.body.innerHTML = '<b>x</b>'; },
         ];
         for (const attempt of attempts) { try { attempt(); } catch (error) { if (!(error instanceof TypeError)) throw error; } }
         document.body.click();
         return [window.slipped ?? null, getComputedStyle(document.body).display, document.querySelectorAll('b').length]",
    );
    assert_eq!(slipped_in, serde_json::json!([null, "block", 0]));
    let console = browser.console();
    assert!(console.iter().any(|line| line.contains("Content Security Policy")), "{console:?}");
}

#[test]
fn without_javascript_the_page_says_where_to_look() {
    let mut farm = Farm::lay_out(&FarmSetup { proxies: Proxies::None, ..FarmSetup::new(1, "") });
    let daemon = &mut farm.hosts[0].daemon;
    daemon.launch();
    wait_for("the daemon's answer", || daemon.try_status());
    let browser = Browser::start();
    browser.devtools("Emulation.setScriptExecutionDisabled", &serde_json::json!({"value": true}));
    browser.open(&daemon.page_url());
    let said = browser.wait_for_text("noscript", |text| !text.is_empty());
    assert!(said.contains("/farm.json") && said.contains("resumed status"), "{said}");
}

#[test]
fn metrics_page_false_turns_off_the_page_and_its_data() {
    let mut farm = Farm::lay_out(&FarmSetup { proxies: Proxies::None, ..FarmSetup::new(1, "") });
    let daemon = &mut farm.hosts[0].daemon;
    let text = fs::read_to_string(daemon.config()).expect("the configuration");
    fs::write(daemon.config(), text.replace("[metrics]\n", "[metrics]\npage = false\n")).expect("the configuration");
    daemon.launch();
    wait_for("the daemon's answer", || daemon.try_status());
    for path in ["/", "/farm.json"] {
        let answer = daemon.get(path).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nnot found: try /metrics, /livez, /readyz or /healthz\n"), "{answer}");
    }
    assert!(daemon.get("/metrics").expect("an answer").starts_with("HTTP/1.1 200 "));
}

#[test]
fn the_data_is_what_status_prints_and_the_last_minutes() {
    let mut farm = Farm::lay_out(&FarmSetup { proxies: Proxies::None, ..FarmSetup::new(1, "") });
    let daemon = &mut farm.hosts[0].daemon;
    daemon.launch();
    wait_for("the daemon's answer", || daemon.try_status());
    let ((overview, status), _) = wait_for("the same from both", || {
        let answer = daemon.get("/farm.json")?;
        let (_, json) = answer.split_once("\r\n\r\n").ok_or(answer.as_str())?;
        let overview: PageStatus = serde_json::from_str(json).map_err(|error| format!("{error}: {json}"))?;
        let status = daemon.try_status()?;
        let seen = (&overview.status.ring, &overview.status.nodes, &overview.status.leader);
        if seen == (&status.ring, &status.nodes, &status.leader) && !overview.history.steps.is_empty() {
            Ok((overview, status))
        } else {
            Err(format!("{overview:?} and {status:?}"))
        }
    });
    assert_eq!(overview.status, status);
    assert_eq!(overview.history.window_ms, 600_000);
    assert_eq!((overview.counts.total, overview.counts.listed), (1, 1));
}
