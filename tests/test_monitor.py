"""A virtual machine's screen and keyboard on the reader's terminal."""

from threading import Event

from bootenv.rehearsal import parse_screen
from console.monitor import Monitor


class FakeGuest:
    def __init__(self, text: str, attribute: int):
        cells = text.ljust(80 * 25).encode("cp437")
        self.memory = bytes(byte for cell in cells for byte in (cell, attribute))
        self.pressed: list[str] = []

    def look(self):
        return parse_screen(self.memory)

    def press(self, key):
        self.pressed.append(key)


async def test_the_guests_screen_is_shown_and_its_keys_are_sent():
    guest = FakeGuest("Press F2 to run █", 0x1E)
    finish = Event()

    def story(say):
        say("Press F2 now.")
        finish.wait()

    app = Monitor(guest, story)
    async with app.run_test(size=(80, 26)) as pilot:
        while "Press F2 to run" not in app.query_one("GuestScreen").render_line(0).text:
            await pilot.pause(0.05)
        segment = next(iter(app.query_one("GuestScreen").render_line(0)))
        assert segment.text.startswith("Press F2 to run █")
        assert (segment.style.color.number, segment.style.bgcolor.number) == (11, 4)      # yellow on blue
        await pilot.press("f2", "a", "enter", "escape", "up")
        while len(guest.pressed) < 5:
            await pilot.pause(0.05)
        finish.set()
    assert sorted(guest.pressed) == sorted(["f2", "a", "ret", "esc", "up"])
    assert app.return_value is None


async def test_the_storys_failure_is_returned():
    def story(say):
        raise ValueError("no")

    app = Monitor(FakeGuest("", 0), story)
    async with app.run_test(size=(80, 26)) as pilot:
        while app.is_running:
            await pilot.pause(0.05)
    assert isinstance(app.return_value, ValueError)
